"""Attention heads as units: which modules have them, and how much each head writes into the residual stream."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from psi_fast.errors import ModelError, nearest

HEADS = "#heads"
"""What stands behind an attention module's name in the name of the layer of its heads."""
_COUNTS = ("num_heads", "num_attention_heads")
_PROJECTIONS = ("proj", "o_proj", "out_proj", "projection")
_LISTED = 3


@dataclass(frozen=True)
class Heads:
    """The heads of one attention module.

    Head h of n turns a token into z_h, which the output projection W maps into the residual stream: it writes
    W_h z_h, with W_h its columns [D, d] of W. The sum over heads, and the projection's bias, which belongs to none, is
    what the module returns.
    """

    attention: nn.Module
    count: int
    projection: nn.Linear

    @property
    def source(self) -> nn.Module:
        """The module whose arguments tell the heads' outputs."""
        # torch's own attention hands the projection's weights on and never calls it
        return self.attention if isinstance(self.attention, nn.MultiheadAttention) else self.projection

    def reader(self, layer: str) -> Callable[[tuple[Any, ...], Mapping[str, Any]], torch.Tensor]:
        """A function from the arguments of `source` to the norms of W_h z_h, float32 [B, T, heads].

        The weights are those at the time of this call. The function raises a ModelError about `layer` for arguments that it
        does not understand.
        """
        with torch.inference_mode(False), torch.no_grad():
            columns = self.projection.weight.float().unflatten(1, (self.count, -1)).transpose(0, 1)  # [heads, D, d]
            # with W_h = Q R and Q orthonormal, |W_h z| = |R z|, and R is d x d
            triangles = torch.linalg.qr(columns, mode="r").R

        def norms(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> torch.Tensor:
            outputs = self._outputs(layer, *arguments, **keywords)
            with torch.autocast(outputs.device.type, enabled=False):
                written = outputs.float().transpose(1, 2) @ triangles.mT
            return torch.linalg.vector_norm(written, dim=3).transpose(1, 2)

        return norms

    def _outputs(self, layer: str, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """z [B, T, heads, d]."""
        if isinstance(self.attention, nn.MultiheadAttention):
            return _attended(layer, self.attention, *arguments, **keywords)
        (tokens,) = (*arguments, *keywords.values())
        if tokens.ndim != 3:
            raise ModelError(
                f"layer {layer!r}: heads are read from tokens [B, T, C], and this attention works on {tuple(tokens.shape)}; "
                "choose another layer"
            )
        return tokens.unflatten(2, (self.count, -1))


def find_heads(module: nn.Module, layer: str, network: str) -> Heads:
    """The heads that the layer name NAME#heads means.

    Parameters
    ----------
    module
        The whole network.
    layer
        A name that ends in `HEADS`.
    network
        Its name, for messages.

    Raises
    ------
    ModelError
        When there is no such module, or it has no heads; it names modules that do.
    """
    modules = dict(module.named_modules())
    name = layer.removesuffix(HEADS)
    there = [own for own, part in modules.items() if heads_of(part)]
    if name not in modules or not name:
        close = nearest(layer, [own + HEADS for own in there])
        raise ModelError(f"layer {layer!r} not found in {network}{close}; {_listed(there)}")
    heads = heads_of(modules[name])
    if heads is None:
        raise ModelError(
            f"{name!r} of {network} ({type(modules[name]).__name__}) has no attention heads that psi_fast can read; "
            f"{_listed(there)}"
        )
    return heads


def heads_of(module: nn.Module) -> Heads | None:
    """The heads of an attention module of timm, of transformers or of torch, or of one laid out like these.

    That is: it has a number of heads, and a linear layer whose input is the heads' outputs, one head behind the other.
    """
    count = _count(module)
    for name in _PROJECTIONS if count else ():
        projection = getattr(module, name, None)
        if isinstance(projection, nn.Linear) and projection.in_features % count == 0:
            return Heads(module, count, projection)
    return None


def heads_count(module: nn.Module) -> int:
    """How many heads an attention module has, also one whose heads psi_fast cannot read; 0 for any other module."""
    named = "attention" in type(module).__name__.lower()  # blocks keep that number too
    return _count(module) if named or heads_of(module) else 0


def one_a_head(shape: tuple[int, ...], layer: str, network: nn.Module) -> bool:
    """Whether an output of this `shape` [A, B, C] is a matrix for each head, as queries and keys within an attention are."""
    if len(shape) != 3:
        return False
    parts = layer.split(".")
    around = (network.get_submodule(".".join(parts[:count])) for count in range(1, len(parts)))
    counts = {heads_count(module) for module in around} - {0}
    first, second, last = shape
    return (first in counts and first != second) or (second in counts and second not in (first, last))


def _count(module: nn.Module) -> int:
    return next((own for name in _COUNTS if isinstance(own := getattr(module, name, None), int)), 0)


def _attended(
    layer: str,
    attention: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> torch.Tensor:
    """z [B, T, heads, d] of the arguments of nn.MultiheadAttention."""
    masked = key_padding_mask is not None or attn_mask is not None or is_causal
    if masked or attention.bias_k is not None or attention.add_zero_attn or query.ndim != 3:
        raise ModelError(
            f"layer {layer!r}: heads of nn.MultiheadAttention are read from batches of tokens without masks and without "
            "added keys; choose another layer"
        )
    tokens = [each if attention.batch_first else each.transpose(0, 1) for each in (query, key, value)]
    if attention.in_proj_weight is None:
        weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    else:
        weights = attention.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    q, k, v = (
        linear(each, weight, bias).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for each, weight, bias in zip(tokens, weights, biases, strict=True)
    )
    return scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _listed(names: list[str]) -> str:
    if not names:
        return "no module of this network has heads that it can read"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"heads are in {', '.join(names[:_LISTED])}{more}"
