"""open_clip models that bring their configuration along, from a repository or a folder, and SigLIP ones; small, random."""

import json

import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import tiny
import torch

from psi_fast import checkpoints
from psi_fast.encoders import SmoothEncoder, load_encoder
from psi_fast.errors import ModelError
from psi_fast.vocabulary import TEMPLATES, Vocabulary

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
CLIP = {"embed_dim": 24, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}, "text_cfg": TEXT}
SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_proj": "none"},
    "text_cfg": {**TEXT, "vocab_size": 64, "width": 64, "hf_tokenizer_name": "made/up", "no_causal_mask": True,
                 "tokenizer_kwargs": {"clean": "canonicalize"}, "pool_type": "last", "proj_bias": True},
}  # fmt: skip
SQUASHED = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
WORDS = Vocabulary("mine", ("red", "dog"))


def write(folder, model_cfg, preprocess_cfg=None):
    """A folder as open_clip's own publishing makes it, with random weights; and the model in it."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = open_clip.model.CustomTextCLIP if model_cfg.get("custom_text") else open_clip.model.CLIP
        model = kind(**{name: value for name, value in model_cfg.items() if name != "custom_text"})
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model.eval()


def write_tokenizer(folder):
    """A tokenizer of transformers that knows a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted(
        {word for template in TEMPLATES for word in template.replace(".", "").lower().split()} | {"red", "dog"}
    )
    made = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["[pad]", "[unk]", *words])}, unk_token="[unk]")
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[pad]", unk_token="[unk]").save_pretrained(folder)


def embedded(encoder):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 50, 40, 3), dtype=np.uint8)
    return encoder.encode(encoder.preprocess(torch.from_numpy(pixels))), pixels[0]


def bank(model, tokenize, concept):
    with torch.no_grad():
        prompts = model.encode_text(tokenize([t.replace("{}", concept) for t in TEMPLATES]))
    return torch.nn.functional.normalize(prompts, dim=1).mean(0)


@pytest.mark.parametrize("quick", [False, True])
def test_a_folder_is_loaded_and_its_activation_recorded(tmp_path, quick):
    model = write(tmp_path / "clip", {**CLIP, "quick_gelu": quick}, SQUASHED)
    encoder = load_encoder(f"open_clip:local-dir:{tmp_path / 'clip'}")
    assert encoder.activation == ("QuickGELU" if quick else "GELU")
    assert encoder.warnings == []
    assert (encoder.preprocess.size, encoder.preprocess.squash, encoder.preprocess.mean) == (32, True, (0.5,) * 3)
    found, pixels = embedded(encoder)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(size=32, **SQUASHED), is_train=False
    )
    with torch.no_grad():
        wanted = model.encode_image(transform(PIL.Image.fromarray(pixels))[None])
    assert torch.nn.functional.cosine_similarity(found, wanted).item() > 0.999
    names, rows = encoder.concepts(WORDS)
    assert names == ["red", "dog"]
    tokenize = open_clip.get_tokenizer("ViT-B-32", context_length=16)
    for row, name in zip(rows, names, strict=True):
        assert torch.nn.functional.cosine_similarity(row, bank(model, tokenize, name), dim=0) > 0.999


def test_gradients_reach_the_pixels_and_embeddings_are_those_without(tmp_path):
    write(tmp_path / "clip", CLIP)
    encoder = load_encoder(f"open_clip:local-dir:{tmp_path / 'clip'}")
    assert isinstance(encoder, SmoothEncoder)
    pixels = torch.rand(3, 50, 40, 3, generator=torch.Generator().manual_seed(0)).mul(255).requires_grad_()
    batch = encoder.preprocess.smooth(pixels)
    found = encoder.encode_smooth(batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.detach(), encoder.at_precision(torch.float32).encode(batch.detach()), rtol=1e-4, atol=1e-5
    )
    direction = torch.nn.functional.normalize(torch.arange(24.0) - 11.5, dim=0)
    (pull,) = torch.autograd.grad((found @ direction).sum(), pixels)
    assert pull.abs().sum((1, 2, 3)).min() > 0
    with torch.no_grad():  # a small step along the gradient does what the gradient says
        step = 0.5 * pull / pull.abs().amax((1, 2, 3), keepdim=True)
        after = encoder.encode_smooth(encoder.preprocess.smooth(pixels + step))
    torch.testing.assert_close(
        ((after - found) @ direction).detach(), (pull * step).sum((1, 2, 3)), rtol=0.1, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_the_image_tower_has_weights_of_its_precision(tmp_path, dtype, model):
    write(tmp_path / "clip", model)
    encoder = load_encoder(f"open_clip:local-dir:{tmp_path / 'clip'}").at_precision(torch.float32)
    size = encoder.preprocess.size
    crops = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    exact, mark = encoder.encode(crops), encoder.fingerprint()
    seen = set()

    def look(module, _inputs):
        if isinstance(module, torch.nn.Linear):
            seen.add((module.weight.dtype, torch.is_autocast_enabled("cpu")))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        found = encoder.at_precision(dtype).encode(crops)
    finally:
        handle.remove()
    assert seen == {(dtype, False)}, "autocast converts the weights of attention once an image"
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, exact).min() > 0.999
    assert not torch.equal(found, exact)
    assert encoder.fingerprint() == mark
    assert torch.equal(encoder.at_precision(torch.float32).encode(crops), exact), "the weights are kept as they were"


def test_the_manifest_names_the_activation(tmp_path):
    write(tmp_path / "clip", {**CLIP, "quick_gelu": True})
    scores = tiny.score(encoder=f"open_clip:local-dir:{tmp_path / 'clip'}", channels=slice(0, 2))
    assert scores.manifest["encoder_activation"] == "QuickGELU"
    assert scores.manifest["encoder_precision"] in ("float32", "bfloat16")
    assert tiny.score(channels=slice(0, 2)).manifest["encoder_activation"] == "not stated"


def test_the_fingerprint_follows_weights_and_configuration_not_the_place(tmp_path):
    def mark(name, **changes):
        write(tmp_path / name, {**CLIP, **changes})
        return load_encoder(f"open_clip:local-dir:{tmp_path / name}").fingerprint()

    assert mark("one") == mark("other")
    assert mark("one") != mark("quick", quick_gelu=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A model hub's cache on disk that holds org/clip, and no hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--clip"
    model = write(repository / "snapshots" / "0123", {**CLIP, "quick_gelu": True})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    return repository, model


def test_a_repository_is_loaded(hub):
    encoder = load_encoder("open_clip:hf-hub:org/clip")
    assert (encoder.name, encoder.activation) == ("open_clip:hf-hub:org/clip", "QuickGELU")
    wanted = bank(hub[1], open_clip.get_tokenizer("ViT-B-32", context_length=16), "red")
    assert torch.nn.functional.cosine_similarity(encoder.concepts(WORDS)[1][0], wanted, dim=0) > 0.999
    assert len(encoder.fingerprint()) == 64


def test_a_repository_without_its_weights_says_what_to_fetch(hub):
    (hub[0] / "snapshots" / "0123" / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(
        ModelError, match=r"open_clip_config\.json and open_clip_model\.safetensors or .* of org/clip on"
    ):
        load_encoder("open_clip:hf-hub:org/clip")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("hf-hub:org/other", r"fetch open_clip_config\.json and .* of org/other .* path as open_clip:local-dir:/path"),
        ("hf-hub:clip", "names no repository of the model hub; expected open_clip:hf-hub:ORG/NAME"),
        ("hf-hub:", "names no repository"),
        ("local-dir:/no/such/folder", "'/no/such/folder' is no folder with an open_clip_config.json"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(hub, spec, says):
    with pytest.raises(ModelError, match=says) as caught:
        load_encoder(f"open_clip:{spec}")
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_or_with_broken_ones_is_one_line(tmp_path):
    write(tmp_path, CLIP)
    weights = tmp_path / "open_clip_pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    torch.save({name: value for name, value in state.items() if name != "logit_scale"}, weights)
    with pytest.raises(ModelError, match=f"{tmp_path} cannot be read as a checkpoint .*logit_scale"):
        load_encoder(f"open_clip:local-dir:{tmp_path}")
    weights.unlink()
    with pytest.raises(ModelError, match=r"holds no weights; put open_clip_model\.safetensors or"):
        load_encoder(f"open_clip:local-dir:{tmp_path}")


def test_a_siglip_model_reads_its_tokenizer_from_the_folder(tmp_path):
    pytest.importorskip("timm")
    model = write(tmp_path, SIGLIP, SQUASHED)
    spec = f"open_clip:local-dir:{tmp_path}"
    encoder = load_encoder(spec)
    bare = encoder.fingerprint()
    assert embedded(encoder)[0].shape == (1, 64)  # images need no tokenizer
    with pytest.raises(ModelError, match=r"put tokenizer\.json and tokenizer_config\.json of made/up there") as caught:
        encoder.concepts(WORDS)
    assert "\n" not in str(caught.value)
    write_tokenizer(tmp_path)
    encoder = load_encoder(spec)
    assert (encoder.activation, encoder.preprocess.squash) == ("GELU", True)
    assert encoder.fingerprint() != bare
    wanted = bank(model, open_clip.get_tokenizer(f"local-dir:{tmp_path}"), "dog")
    assert torch.nn.functional.cosine_similarity(encoder.concepts(WORDS)[1][1], wanted, dim=0) > 0.999


def test_a_tokenizer_that_cannot_be_fetched_is_said_at_once(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    write(tmp_path, SIGLIP)
    open_clip.add_model_config(_named(tmp_path, "tiny-SigLIP", SIGLIP))
    encoder = load_encoder(f"open_clip:tiny-SigLIP/{tmp_path / 'open_clip_pytorch_model.bin'}")
    monkeypatch.setattr(checkpoints, "_answers", lambda _url: False)
    monkeypatch.setattr(open_clip, "get_tokenizer", None)  # its own attempts take most of a minute
    with pytest.raises(
        ModelError, match=r"fetch tokenizer\.json and tokenizer_config\.json of made/up .*local-dir:/path"
    ):
        encoder.concepts(WORDS)


def _named(folder, name, model_cfg):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(model_cfg))
    return path
