"""Registers, shared memory and spills of every Triton kernel, compiled for three GPU generations without having one.

python benchmarks/kernel_resources.py                      # a table on the terminal
python benchmarks/kernel_resources.py --json rotation_null # rows of one op, for the tests
python benchmarks/kernel_resources.py --write              # the table in kernels/README.md
"""

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from psi_fast_kernels._specimen import Specimen

OPS = ("philox", "cluster", "rotation_null", "permutation_null", "text_null", "topk_merge")
ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes one program may use (CUDA programming guide)
README = Path(__file__).resolve().parents[1] / "kernels" / "README.md"
BEGIN, END = "<!-- kernel_resources.py: begin -->", "<!-- kernel_resources.py: end -->"


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture; spills are bytes of stack per thread."""

    op: str
    kernel: str
    architecture: int
    warps: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    shared_limit: int
    wgmma: int
    products: bool
    default: bool


def compile_specimen(op: str, specimen: Specimen, architecture: int) -> Row:
    """Compile for `architecture` and read what the machine code uses."""
    names = specimen.kernel.arg_names
    signature = {name: specimen.signature.get(name, "constexpr") for name in names}
    chosen = specimen.constants | (dict(specimen.before_90) if architecture < 90 else {})
    constants = {(names.index(name),): value for name, value in chosen.items()}
    # torch allocates on 256-byte borders, and a launch tells the compiler so
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if signature[name].startswith("*")
    }
    built = triton.compile(
        ASTSource(specimen.kernel, signature, constants, aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": specimen.warps, "num_stages": specimen.stages},
    )
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(built.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([tool, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    return Row(
        op=op,
        kernel=specimen.name,
        architecture=architecture,
        warps=specimen.warps,
        registers=found["REG"],
        spill_bytes=found["STACK"],
        shared_bytes=max(found["SHARED"], built.metadata.shared),
        shared_limit=SHARED_LIMIT[architecture],
        wgmma=len(re.findall(r"wgmma\.mma_async", built.asm["ptx"])),
        products=specimen.products,
        default=specimen.default,
    )


def rows(ops: list[str], architectures: tuple[int, ...] = ARCHITECTURES) -> list[Row]:
    """Every specimen of `ops` on every architecture."""
    return [
        compile_specimen(op, specimen, architecture)
        for op in ops
        for specimen in import_module(f"psi_fast_kernels.{op}.triton_impl").specimens()
        for architecture in architectures
    ]


def markdown(found: list[Row]) -> str:
    """One line per kernel: registers / shared KiB / spilled bytes on each architecture."""
    head = " | ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    lines = [f"| kernel | warps | {head} |", "|---|---|" + "---|" * len(ARCHITECTURES)]
    for op, kernel in dict.fromkeys((row.op, row.kernel) for row in found):
        own = {row.architecture: row for row in found if (row.op, row.kernel) == (op, kernel)}
        cells = " | ".join(
            f"{row.registers} / {row.shared_bytes / 1024:.1f} / {row.spill_bytes}" for row in own.values()
        )
        lines.append(f"| `{op}`: {kernel} | {next(iter(own.values())).warps} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Compile, and print or write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", default=list(OPS), help="all of them by default")
    parser.add_argument("--architectures", nargs="*", type=int, default=list(ARCHITECTURES), help="80, 90, 100")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the table into kernels/README.md")
    options = parser.parse_args()
    found = rows(options.ops, tuple(options.architectures))
    console = Console(highlight=False)
    if options.json:
        console.file.write(json.dumps([asdict(row) for row in found]) + "\n")
    elif options.write:
        text = README.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        README.write_text(f"{before}{BEGIN}\n{markdown(found)}\n{END}{after}", encoding="utf-8")
    else:
        table = Table("op", "kernel", "sm", "warps", "registers", "spill B", "shared KiB", "wgmma")
        for row in found:
            table.add_row(
                row.op, row.kernel, str(row.architecture), str(row.warps), str(row.registers), str(row.spill_bytes),
                f"{row.shared_bytes / 1024:.1f}", str(row.wgmma),
            )  # fmt: skip
        console.print(table)


if __name__ == "__main__":
    main()
