"""Who may import whom, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import psi_fast
import psi_fast_kernels

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [
    Path(package.__file__).parent for package in (psi_fast, psi_fast_kernels)
]  # of the checkout, or as installed
PRODUCT = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
SOURCES = sorted([*PRODUCT, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
OPTIONAL = (
    *("open_clip", "timm", "transformers", "sentence_transformers", "datasets", "braceexpand"),
    *("skimage", "efficientnet_lite_pytorch", "sklearn", "faiss", "cuml", "matplotlib", "ray"),
)
MAX_LINES = 400


def imports(path: Path) -> set[str]:
    """Dotted names a file imports anywhere in it; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*Path(name_of(path)).parts[: -node.level], *([base] if base else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def imports_any(path: Path, *packages: str) -> set[str]:
    return {name for name in imports(path) for p in packages if name == p or name.startswith(p + ".")}


def name_of(path: Path) -> str:
    """Of a package, with the package's name; else from the root."""
    package = next((package for package in PACKAGES if path.is_relative_to(package)), None)
    return str(path.relative_to(package.parent if package else ROOT))


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_product_imports_no_tests_and_no_benchmarks(path):
    assert not imports_any(path, "tests", "benchmarks", "replicas", "conftest", "pytest", "sklearn")


@pytest.mark.parametrize("path", [p for p in PRODUCT if "psi_fast_kernels" in p.parts], ids=name_of)
def test_kernels_never_import_psi_fast(path):
    assert not imports_any(path, "psi_fast")


@pytest.mark.parametrize("path", [p for p in PRODUCT if not p.name.startswith("triton_")], ids=name_of)
def test_only_triton_files_import_triton(path):
    assert not imports_any(path, "triton")


@pytest.mark.parametrize("path", [p for p in PRODUCT if p.name not in ("numba_impl.py", "_compiled.py")], ids=name_of)
def test_only_compiled_loops_import_numba(path):
    assert not imports_any(path, "numba")


@pytest.mark.parametrize("name", ["calibration", "config", "errors", "scores"])
def test_pure_modules_import_no_kernel(name):
    assert not imports_any(PACKAGES[0] / f"{name}.py", "psi_fast_kernels")


@pytest.mark.parametrize(
    ("name", "above"),
    [
        *((stage, ("api", "cli", "present", "demo", "store")) for stage in ("clustering", "components", "nulls")),
        *((stage, ("api", "cli", "present", "demo")) for stage in ("evaluation", "mining", "crops", "scores", "store")),
        ("calibration", ("api", "cli", "nulls", "evaluation", "results")),
        ("config", ("api", "cli", "evaluation", "results")),
        ("api", ("cli", "present", "demo")),
    ],
)
def test_nothing_imports_what_lies_above_it(name, above):
    assert not imports_any(PACKAGES[0] / f"{name}.py", *(f"psi_fast.{module}" for module in above))


def test_hooks_live_in_the_activation_tap():
    hooked = {p.name for p in PRODUCT if "register_forward" in p.read_text(encoding="utf-8")}
    assert hooked <= {"activation_tap.py"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_within_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_kernels_root_is_no_package():
    assert not (PACKAGES[1].parent / "__init__.py").exists()


def test_checker_sees_a_forbidden_import(tmp_path, monkeypatch):
    """The tests above can fail: every form of an import is found."""
    for text in ("import triton.language as tl", "def f():\n    from triton import jit", "from triton.x import y"):
        path = tmp_path / "x.py"
        path.write_text(text)
        assert imports_any(path, "triton")
    path.write_text("import tritonclient\nfrom psi_fast_kernels import cluster")
    assert not imports_any(path, "triton", "psi_fast")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGES", [tmp_path / "psi_fast"])
    (tmp_path / "psi_fast").mkdir()
    nested = tmp_path / "psi_fast" / "config.py"
    nested.write_text("from . import api\nfrom .cli import main")
    assert {"psi_fast.api", "psi_fast.cli"} <= imports(nested)


def test_a_run_on_the_cpu_loads_no_optional_package():
    program = (
        "import sys, numpy as np, psi_fast\n"
        "x = np.random.default_rng(0).normal(size=(2, 16, 8))\n"
        "psi_fast.score_embeddings(x, labels=np.zeros((2, 16), int), text=x[0], config=psi_fast.PSIConfig(draws=3))\n"
        f"print([name for name in {OPTIONAL!r} if name in sys.modules])\n"
        "print(sorted(name for name in sys.modules if name.startswith('psi_fast') and 'triton' in name))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split("\n")[:2] == ["[]", "[]"]
