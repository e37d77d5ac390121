"""What a kernel is compiled with when there is no GPU to run it on."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Specimen(NamedTuple):
    """One kernel at one shape, as `benchmarks/kernel_resources.py` and the tests compile it.

    name : what the table calls it
    kernel : the jitted function
    signature : argument name -> Triton type ("*fp32", "i32", ...), constants left out
    constants : argument name -> compile-time value
    warps, stages : launch options
    products : whether it multiplies matrices, so that an sm_90 build must hold wgmma instructions
    before_90 : constants that take other values on architectures before sm_90
    default : whether this is the shape of the default settings, which must not spill
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 1
    products: bool = False
    before_90: Mapping[str, Any] = MappingProxyType({})
    default: bool = True
