"""Which of a network's layers hold what one scores in a transformer: neurons of MLPs, the residual stream, attention heads."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from psi_fast.activation_tap import LayerInfo
from psi_fast.attention_heads import HEADS, heads_count

NEURONS, RESIDUAL, ATTENTION = "neurons of MLPs", "units of the residual stream", "attention heads"
_ACTIVATION = re.compile("act|elu|swish|silu|mish|sigmoid|tanh")


def unit_layers(module: nn.Module, layers: Sequence[LayerInfo]) -> dict[str, list[str]]:
    """Names of the layers that hold each kind of unit; kinds that the network has not are left out.

    Parameters
    ----------
    module
        The whole network.
    layers
        All that `list_layers` tells of it.

    Returns
    -------
    dict
        Of an MLP, D -> H -> D for every position, the H neurons lie where the second of its layers reads them: behind the
        activation function, and behind the product of a gated one; where these are no modules, they have no name. The residual
        stream is what the block around the MLP gives.
    """
    readable = {layer.name: layer.channels for layer in layers if not layer.refused and layer.calls == 1}
    found: dict[str, list[str]] = {NEURONS: [], RESIDUAL: [], ATTENTION: []}
    modules = dict(module.named_modules())
    mlps = list(_mlps(modules, layers))
    for mlp in mlps:
        between = (layer.name for layer in layers[mlp.span[0] + 1 : mlp.span[1]])
        wide = [name for name in between if readable.get(name) == mlp.hidden]
        active = [name for name in wide if _ACTIVATION.search(type(modules[name]).__name__.lower())]
        if mlp.gated:  # the activation is of one factor
            found[NEURONS] += [name for name in wide[-1:] if name not in active]
        else:
            found[NEURONS] += (active or wide[-1:])[:1]
        block = _block(mlp, mlps, modules)
        if readable.get(block) == mlp.width:
            found[RESIDUAL].append(block)
    found[ATTENTION] = [name for name in readable if name.endswith(HEADS)]
    return {kind: list(dict.fromkeys(names)) for kind, names in found.items() if names}


@dataclass(frozen=True)
class _Mlp:
    """An MLP: the names of its layers with weights, the places of the last two in the order of execution, its widths."""

    parts: tuple[str, ...]
    span: tuple[int, int]
    width: int
    hidden: int
    gated: bool


def _mlps(modules: Mapping[str, nn.Module], layers: Sequence[LayerInfo]) -> Iterator[_Mlp]:
    attention = tuple(f"{name}." for name, part in modules.items() if heads_count(part))
    weighted = [name for name, part in modules.items() if isinstance(part, (nn.Linear, nn.Conv2d))]
    order = [layer.name for layer in layers]
    chain = [name for name in order if name in weighted and not name.startswith(attention)]
    maps = {layer.name for layer in layers if math.prod(layer.shape) > layer.channels > 0}
    for place, (first, second) in enumerate(pairwise(chain)):
        own, last = _widths(modules[first]), _widths(modules[second])
        if own is None or last is None or own[0] != last[1] or first not in maps:
            continue
        twin = place > 0 and _widths(modules[chain[place - 1]]) == own
        parts = tuple(chain[place - twin : place + 2])
        span = order.index(first), order.index(second)
        ended = order[span[0] : span[1]]
        if any(_within(name, ended) for name in weighted if name not in parts):  # these two lie in different blocks
            continue
        gated = twin or own[1] == 2 * last[0]
        if gated or own[1] == last[0]:
            yield _Mlp(parts, span, last[1], last[0], gated)


def _block(mlp: _Mlp, others: Sequence[_Mlp], modules: Mapping[str, nn.Module]) -> str:
    """Name of the largest module that holds this MLP and no other; empty where that is the MLP itself."""
    around = _around(mlp.parts[-1])
    alone = [name for name in around if not any(_within(other.parts[-1], [name]) for other in others if other != mlp)]
    if not alone:
        return ""
    own = sum(isinstance(part, (nn.Linear, nn.Conv2d)) for part in modules[alone[-1]].modules())
    return alone[-1] if alone[-1] != around[0] or own > len(mlp.parts) else ""


def _widths(part: nn.Module) -> tuple[int, int] | None:
    """What a layer that works on each position alone reads and gives; None for any other."""
    if isinstance(part, nn.Linear):
        return part.in_features, part.out_features
    if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1:
        return part.in_channels, part.out_channels
    return None


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _around(name: str) -> list[str]:
    """Names of the modules that hold this one, the smallest first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
