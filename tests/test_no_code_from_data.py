"""What is read is data: checkpoints, models' folders, datasets and files of jobs run no code unless that is asked for."""

import ast
import json
import os
import pickle

import pytest
import tiny
import torch
from image_helpers import message
from test_layout import PRODUCT, name_of
from tiny import one_line, run

import psi_fast
from psi_fast.batch import run_jobs
from psi_fast.encoders import load_encoder
from psi_fast.errors import ConfigError, InputError, ModelError
from psi_fast.images import open_images
from psi_fast.networks import load_network

NAMES_THE_FLAG = "give --trust-checkpoint (trust_checkpoint=True in Python) if you trust whoever made it"
CALLS = {"eval", "exec", "compile", "__import__"}
"""Builtins that make code of text."""
MODULES = {"dill", "joblib", "marshal", "shelve", "yaml"}
"""Whose readers run code, or can be told to."""


class Touching:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def touched(tmp_path):
    return tmp_path / "touched"


def refused(load, spec, touched):
    """A spec is refused with a line that names the flag, and nothing has run."""
    said = message(load, spec, error=ModelError)
    assert NAMES_THE_FLAG in said
    assert not touched.exists()


# ---- the sources


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_no_source_runs_what_it_reads(path):
    assert not runs_what_it_reads(path.read_text(encoding="utf-8"))


def runs_what_it_reads(source):
    """Lines of a source that make code of what is read, or let a library do so."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            found += [node.lineno for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {one.arg: ast.unparse(one.value) for one in node.keywords}
        bad = (
            called in CALLS
            or called in ("pickle.load", "pickle.loads", "pickle.Unpickler")
            or (called.endswith(("torch.load", "create_model_from_pretrained")) and "weights_only" not in given)
            or given.get("allow_pickle", "False") != "False"
            or given.get("trust_remote_code", "False") != "False"
            or given.get("weights_only") == "False"
        )
        found += [node.lineno] if bad else []
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import yaml",
        "from joblib import load",
        "eval(text)",
        "pickle.loads(held)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(folder, trust_remote_code=trusted)",
    ],
)
def test_the_test_above_can_fail(line):
    assert runs_what_it_reads(line) == [1]


# ---- checkpoints


def of_objects(path, state, touched):
    torch.save({"state_dict": state, "by": Touching(touched)}, path)


def of_an_old_pickle(path, state, touched):
    path.write_bytes(pickle.dumps({"by": Touching(touched)}))


@pytest.mark.parametrize("write", [of_objects, of_an_old_pickle])
@pytest.mark.parametrize("family", ["torchvision", "timm"])
def test_a_pickle_is_refused_with_the_flag_named_and_read_with_it(tmp_path, touched, family, write):
    if family == "timm":
        pytest.importorskip("timm")
    path, spec = tmp_path / "held.pth", f"{family}:resnet18"
    write(path, load_network(f"{spec}@none").module.state_dict(), touched)
    refused(load_network, f"{spec}@{path}", touched)
    refused(load_encoder, f"classifier:{spec}@{path}", touched)
    if write is of_an_old_pickle:  # code, but no checkpoint
        assert "cannot be read as a checkpoint" in message(load_network, f"{spec}@{path}", True, error=ModelError)
    else:
        assert load_network(f"{spec}@{path}", True).fingerprint() == load_network(f"{spec}@none").fingerprint()
        assert touched.exists()


def test_a_whole_module_and_torchscript_are_taken_when_they_are_trusted(tmp_path, touched):
    made = load_network("torchvision:squeezenet1_1@none")
    mark = made.fingerprint()
    torch.save({"model": made.module}, tmp_path / "module.pth")
    torch.jit.script(made.module).save(tmp_path / "script.pth")
    for name in ("module.pth", "script.pth"):
        spec = f"torchvision:squeezenet1_1@{tmp_path / name}"
        refused(load_network, spec, touched)
        assert load_network(spec, True).fingerprint() == mark


def test_what_trusted_code_raises_is_one_line(tmp_path):
    class Raising:
        def __reduce__(self):
            return divmod, (1, 0)

    torch.save({"by": Raising()}, tmp_path / "held.pth")
    said = message(load_network, f"torchvision:resnet18@{tmp_path / 'held.pth'}", True, error=ModelError)
    assert "cannot be read as a checkpoint" in said
    assert "by zero" in said


@pytest.mark.parametrize("form", ["file", "folder"])
def test_pickles_of_open_clip(tmp_path, touched, form):
    pytest.importorskip("open_clip")
    from test_open_clip import CLIP, write

    model = write(tmp_path, CLIP)
    held = tmp_path / "open_clip_pytorch_model.bin"
    spec = f"open_clip:local-dir:{tmp_path}"
    if form == "file":
        (tmp_path / "tiny-CLIP.json").write_text(json.dumps(CLIP))
        import open_clip

        open_clip.add_model_config(tmp_path / "tiny-CLIP.json")
        spec = f"open_clip:tiny-CLIP/{held}"
    of_objects(held, model.state_dict(), touched)
    refused(load_encoder, spec, touched)
    encoder = load_encoder(spec, True)
    assert touched.exists()
    assert torch.equal(encoder._model.state_dict()["logit_scale"], model.state_dict()["logit_scale"])


def test_pickles_of_transformers(tmp_path, touched):
    pytest.importorskip("transformers")
    from tiny_transformers import saved

    spec = f"transformers:{saved(tmp_path, 'vit')}"
    made = load_network(spec)
    of_objects(tmp_path / "pytorch_model.bin", {}, touched)
    assert load_network(spec, True).fingerprint() == made.fingerprint()  # safetensors come first
    assert not touched.exists()
    (tmp_path / "model.safetensors").unlink()
    torch.save({**made.module.state_dict(), "by": Touching(touched)}, tmp_path / "pytorch_model.bin")
    refused(load_network, spec, touched)
    assert load_network(spec, True).fingerprint() == made.fingerprint()
    assert touched.exists()
    os.rename(tmp_path / "pytorch_model.bin", tmp_path / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {"any": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert load_network(spec, True).fingerprint() == made.fingerprint()
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"any": "../elsewhere.bin"}}))
    assert "names '../elsewhere.bin', which is no file of its folder" in message(
        load_network, spec, True, error=ModelError
    )


# ---- the flag


def test_the_flag_reaches_network_and_encoder(tmp_path, touched, capsys, monkeypatch, pictures):
    path = tmp_path / "held.pth"
    of_objects(path, load_network("torchvision:squeezenet1_1@none").module.state_dict(), touched)
    spec = f"torchvision:squeezenet1_1@{path}"
    assert run("layers", "--network", spec, "--layer", "classifier.1") == 2
    assert NAMES_THE_FLAG in one_line(capsys)
    assert not touched.exists()
    assert run("layers", "--network", spec, "--layer", "classifier.1", "--trust-checkpoint") == 0
    touched.unlink()
    capsys.readouterr()

    inputs = {"layer": tiny.LAYER, "images": str(pictures), "out": str(tmp_path / "run"), "progress": False}
    file = tmp_path / "job.toml"
    for trusted in ("false", "true"):
        lines = [f"{name} = {json.dumps(value)}" for name, value in inputs.items()]
        lines += ['network = "tiny:network"', f'encoder = "classifier:{spec}"', f"trust_checkpoint = {trusted}"]
        file.write_text("\n".join(lines))
        settings = [part for flag, value in tiny.SETTINGS.items() for part in (flag, value)]
        assert run("score", "--config", file, *settings) == (0 if trusted == "true" else 2)
        assert touched.exists() == (trusted == "true")
    capsys.readouterr()


def test_python_trusts_by_an_argument(tmp_path, touched, pictures):
    path = tmp_path / "held.pth"
    of_objects(path, load_network("torchvision:squeezenet1_1@none").module.state_dict(), touched)
    encoder = f"classifier:torchvision:squeezenet1_1@{path}"
    given = {"encoder": encoder, "config": tiny.CONFIG, "progress": False}
    with pytest.raises(ModelError, match="--trust-checkpoint"):
        psi_fast.score(tiny.network(), tiny.LAYER, pictures, **given)
    assert not touched.exists()
    assert len(psi_fast.score(tiny.network(), tiny.LAYER, pictures, trust_checkpoint=True, **given).table) == 6


def test_a_file_of_jobs_trusts_nobody_by_itself(tmp_path):
    job = {
        "network": "timm:resnet18",
        "layer": "x",
        "images": "y",
        "encoder": "open_clip:A/b",
        "trust_checkpoint": True,
    }
    said = message(run_jobs, [job], tmp_path / "out", progress=False, error=ConfigError)
    assert "sets trust_checkpoint, which runs the code that a checkpoint holds; give --allow-code" in said
    assert not (tmp_path / "out").exists()


# ---- code beside data


def test_a_text_heads_folder_brings_no_code(tmp_path, touched):
    pytest.importorskip("sentence_transformers")
    from psi_fast.encoders.text_head import load_text_head

    module = {"idx": 0, "name": "0", "path": "", "type": "mine.Model"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    (tmp_path / "mine.py").write_text(f"open({str(touched)!r}, 'w')\nclass Model: pass")
    assert "'mine.Model'" in message(load_text_head, f"sentence-transformers:{tmp_path}", error=ModelError)
    assert not touched.exists()


def test_a_clips_tokenizer_brings_no_code(tmp_path):
    pytest.importorskip("open_clip")
    from test_open_clip import SIGLIP, WORDS, write

    text = SIGLIP["text_cfg"] | {"tokenizer_kwargs": {"trust_remote_code": True}}
    write(tmp_path, SIGLIP | {"text_cfg": text})
    encoder = load_encoder(f"open_clip:local-dir:{tmp_path}")
    assert "asks for trust_remote_code" in message(encoder.concepts, WORDS, error=ModelError)


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_datasets_script_is_not_run(tmp_path, touched, place):
    pytest.importorskip("datasets")
    from test_hf_datasets import as_parquet, made

    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(touched)!r}, 'w')")
    if place == "folder":
        as_parquet(folder, made())
        assert "scripts are no longer supported" in message(open_images, folder, error=InputError)
    else:
        (folder / "data.parquet").write_text(f"open({str(touched)!r}, 'w')")
        assert "cannot be read" in message(open_images, folder / "data.parquet", error=InputError)
    assert not touched.exists()
