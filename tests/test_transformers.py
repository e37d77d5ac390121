"""Networks of transformers: what is loaded, how it is fed, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from psi_fast import checkpoints
from psi_fast.activation_tap import final_linear
from psi_fast.encoders import load_encoder
from psi_fast.errors import ModelError
from psi_fast.networks import load_network
from psi_fast.preprocess import Preprocess

pytest.importorskip("transformers")

from tiny_transformers import FED, config, saved
from transformers import AutoImageProcessor, CLIPModel, ViTModel

CLASSES = {0: "tench", 1: "goldfish", 2: "shark"}


def refused(spec, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_network(spec)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_model_without_a_head(tmp_path, capfd):
    network = load_network(f"transformers:{saved(tmp_path, 'vit')}")
    assert type(network.module).__name__ == "ViTModel"
    assert network.preprocess == Preprocess(32, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", squash=True)
    assert (network.class_names, network.warnings) == (None, [])
    stored = ViTModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in network.module.state_dict().items())
    capfd.readouterr()
    load_network(f"transformers:{tmp_path}")
    assert capfd.readouterr() == ("", "")  # no bars, no reports


def test_classifier_with_its_names(tmp_path):
    network = load_network(f"transformers:{saved(tmp_path, 'vit', 'ForImageClassification', id2label=CLASSES)}")
    assert network.class_names == ["tench", "goldfish", "shark"]
    assert final_linear(network) == "classifier"
    names, rows = load_encoder(f"classifier:transformers:{tmp_path}").concepts(None)
    assert (names, rows.shape) == (["tench", "goldfish", "shark"], (3, 24))


def test_placeholders_are_no_names(tmp_path):
    network = load_network(f"transformers:{saved(tmp_path, 'vit', 'ForImageClassification', num_labels=3)}")
    assert network.class_names is None
    assert network.module.classifier.out_features == 3


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_tower_for_images(tmp_path, kind):
    network = load_network(f"transformers:{saved(tmp_path, kind)}")
    assert type(network.module).__name__ in ("CLIPVisionModel", "SiglipVisionModel")
    if kind == "clip":
        stored = CLIPModel.from_pretrained(tmp_path).vision_model.state_dict()
        assert all(torch.equal(value, stored[key]) for key, value in network.module.state_dict().items())


def test_half_precision_weights_run_in_float32(tmp_path):
    saved(tmp_path, "vit")
    ViTModel.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    module = load_network(f"transformers:{tmp_path}").module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_random_weights(tmp_path):
    saved(tmp_path, "vit", "ForImageClassification", id2label=CLASSES)
    for name in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).unlink()
    torch.manual_seed(1)
    first = load_network(f"transformers:{tmp_path}@none")
    torch.manual_seed(2)
    assert first.fingerprint() == load_network(f"transformers:{tmp_path}@none").fingerprint()
    assert first.preprocess == Preprocess(32, 36)
    assert first.warnings == [f"random weights (transformers:{tmp_path}@none)"]
    assert first.class_names is None
    assert first.module.classifier.out_features == 3


def test_default_config_of_a_type(monkeypatch):
    import transformers

    small = {kind: config(kind) for kind in ("vit", "clip")}
    monkeypatch.setattr(transformers.AutoConfig, "for_model", small.get)
    assert type(load_network("transformers:vit@none").module).__name__ == "ViTModel"
    assert type(load_network("transformers:clip@none").module).__name__ == "CLIPVisionModel"
    refused("transformers:vitt@none", "no model type 'vitt'; nearest: 'vit'")
    monkeypatch.undo()
    refused("transformers:vit_mae@none", "at random in each forward pass.*timm:")


SHORTEST = {"size": {"shortest_edge": 36}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


@pytest.mark.parametrize(
    "fed",
    [
        FED,
        SHORTEST | {"image_processor_type": "CLIPImageProcessor", "crop_size": 32},
        SHORTEST | {"image_processor_type": "CLIPImageProcessor", "crop_size": 33},
        SHORTEST | {"image_processor_type": "DeiTImageProcessor", "size": 36, "crop_size": 32},
        SHORTEST | {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875},
        SHORTEST | {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
        FED | {"do_normalize": False},
        FED | {"rescale_factor": 1 / 127.5, "do_normalize": True},
    ],
)
def test_fed_as_by_its_own_image_processor(tmp_path, fed):
    saved(tmp_path, "vit", fed=fed)
    preprocess = load_network(f"transformers:{tmp_path}").preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(pixels).resize((360, 360)))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(images=Image.fromarray(pixels), return_tensors="pt")
    ours = preprocess(torch.from_numpy(pixels.copy())[None])
    step = 1 / (255 * np.array(preprocess.std).min())
    odd = int(preprocess.resize - preprocess.size == 3)  # 1.5 lines on each side are cut as 1 or as 2
    apart = theirs["pixel_values"][..., odd:, odd:] - ours[..., : preprocess.size - odd, : preprocess.size - odd]
    assert apart.abs().max() <= 1.01 * step


@pytest.mark.parametrize(
    ("fed", "message"),
    [
        (SHORTEST | {"image_processor_type": "LevitImageProcessor", "crop_size": 32}, "does more than resize"),
        (
            {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32},
            r"MobileViTImageProcessor\) does more than resize",  # it swaps red and blue
        ),
        (FED | {"resample": 0}, "does not make squares by a bilinear or bicubic"),
        (FED | {"size": {"height": 32, "width": 40}}, "does not make squares"),
        (SHORTEST | {"image_processor_type": "CLIPImageProcessor", "crop_size": 40}, "centre crop within it"),
        (SHORTEST | {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "does not make squares"),
        (FED | {"do_resize": False}, "do_resize False"),
        ({"image_processor_type": "NoSuchProcessor"}, "cannot be loaded by transformers"),
    ],
)
def test_feeding_that_cannot_be_expressed(tmp_path, fed, message):
    refused(f"transformers:{saved(tmp_path, 'vit', fed=fed)}", message)


def test_folders_that_lack_something(tmp_path):
    refused(f"transformers:{tmp_path}", "has no config.json")
    refused("transformers:./no/such", "names no folder")
    refused("transformers:vit", "names no folder.*transformers:vit@none")
    refused("transformers:vit@v2", "must be @none")
    saved(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").unlink()
    refused(f"transformers:{tmp_path}", "has no preprocessor_config.json")
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    refused(f"transformers:{tmp_path}", "cannot be loaded")
    (tmp_path / "model.safetensors").unlink()
    refused(f"transformers:{tmp_path}", "has no model.safetensors; save it")
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    refused(f"transformers:{tmp_path}", r"pytorch_model\.bin is refused")


def test_weights_that_do_not_fit(tmp_path):
    from safetensors.torch import load_file, save_file

    path = saved(tmp_path, "vit") / "model.safetensors"
    whole = load_file(path)
    save_file({key: value for key, value in whole.items() if "pooler" not in key}, path, {"format": "pt"})
    (warning,) = load_network(f"transformers:{tmp_path}").warnings
    assert "pooler.dense.bias, pooler.dense.weight" in warning
    layer = [key for key in whole if "layers.1." in key or "layer.1." in key]
    assert layer
    save_file({key: value for key, value in whole.items() if key not in layer}, path, {"format": "pt"})
    refused(f"transformers:{tmp_path}", r"do not fit ViTModel: they lack layers\.1\..* and \d+ more")


def test_code_in_a_repository_is_not_run(tmp_path):
    saved(tmp_path, "vit")
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    refused(f"transformers:{tmp_path}", "contains custom code which must be executed")
    assert not (tmp_path / "touched").exists()


def test_text_models_are_refused(tmp_path, monkeypatch):
    import transformers

    small = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    monkeypatch.setattr(transformers.AutoConfig, "for_model", lambda _kind: small)
    refused("transformers:bert@none", "BertModel, which takes input_ids, expected images")


def test_hub_out_of_reach(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # is not asked at all
    monkeypatch.setattr(checkpoints, "_answers", lambda _url: False)
    refused(
        "transformers:google/vit-base-patch16-224",
        r"fetch model\.safetensors.*google/vit-base-patch16-224.*transformers:/path/to/folder.*preprocessor_config\.json",
    )
    refused("transformers:google/vit-base-patch16-224@none", r"fetch config\.json")


def test_hub_that_refuses(monkeypatch):
    import huggingface_hub

    def refuse(*_arguments, **_settings):
        raise OSError("401 Client Error\nRepository Not Found")

    monkeypatch.setattr(checkpoints, "_answers", lambda _url: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    refused("transformers:no/such", r"401 Client Error Repository Not Found\): fetch model\.safetensors")


def test_files_of_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def fetch(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(shutil.copytree(tmp_path / "hub", tmp_path / "cache"))

    monkeypatch.setattr(checkpoints, "_answers", lambda _url: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    (tmp_path / "hub").mkdir()
    saved(tmp_path / "hub", "vit")
    network = load_network("transformers:me/mine")
    assert network.name == "transformers:me/mine"
    ((repository, patterns),) = asked
    assert repository == "me/mine"
    assert not any("bin" in pattern for pattern in patterns)


def test_missing_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    refused("transformers:vit@none", r"pip install \"psi-fast\[transformers\]\"")
