"""Vision models of transformers that are small enough for a test, as folders that save_pretrained makes."""

import json

import transformers
from tiny import seeded
from transformers import AutoConfig

WIDTH = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
PICTURE = {"image_size": 32, "patch_size": 8}
FED = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


def config(kind, **more):
    """A small config of `vit`, `dinov2`, `clip`, `siglip` or `convnext`."""
    if kind == "convnext":
        return AutoConfig.for_model(kind, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], image_size=32, **more)
    if kind in ("clip", "siglip"):
        text = WIDTH | {
            "vocab_size": 32,
            "num_hidden_layers": 1,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        }
        return AutoConfig.for_model(kind, vision_config=WIDTH | PICTURE, text_config=text, **more)
    return AutoConfig.for_model(kind, **WIDTH, **PICTURE, **more)


def saved(folder, kind, head="Model", fed=FED, **more):
    """The folder with a small model in it, `head` as in ViTModel or ViTForImageClassification."""
    prefix = {"vit": "ViT", "dinov2": "Dinov2", "clip": "CLIP", "siglip": "Siglip", "convnext": "ConvNext"}[kind]
    module = seeded(lambda: getattr(transformers, prefix + head)(config(kind, **more)))
    module.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(fed))
    return folder
