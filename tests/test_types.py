"""Pyright checks the public API in its strict mode (`make lint` runs it), and both packages say that they are typed."""

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

import psi_fast
import psi_fast_kernels

ROOT = Path(__file__).resolve().parents[1]
CHECKED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pyright"]
OPS = ("cluster", "permutation_null", "philox", "rotation_null", "text_null", "topk_merge")


def checked_strictly(module: str) -> bool:
    place = Path(*module.split("."))
    files = [place.with_suffix(".py"), place / "__init__.py"]
    return any(
        (Path("kernels") / file if module.startswith("psi_fast_kernels") else file).match(pattern)
        for pattern in CHECKED["strict"]
        for file in files
    )


@pytest.mark.parametrize("package", [psi_fast, psi_fast_kernels])
def test_packages_say_that_they_are_typed(package):
    assert (Path(package.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("package", ["psi_fast", "psi_fast.encoders", "psi_fast.networks"])
def test_what_defines_public_names_is_checked_strictly(package):
    exported = importlib.import_module(package)
    assert checked_strictly(package)
    for name in exported.__all__:
        module = getattr(exported, name).__module__
        assert checked_strictly(module), f"{module} defines {name}"


@pytest.mark.parametrize("op", OPS)
def test_ops_are_checked_strictly(op):
    assert checked_strictly(f"psi_fast_kernels.{op}")
    assert checked_strictly(f"psi_fast_kernels.{op}.op")


def test_only_triton_s_language_is_left_out():
    assert [pattern for pattern in CHECKED["exclude"] if "__pycache__" not in pattern] == ["**/triton_*.py"]
    assert {"psi_fast", "kernels"} < set(CHECKED["include"])
    assert not [name for name in CHECKED if name.startswith("report")], (
        "rules are switched off for a line, with its reason"
    )


def test_the_typed_program_uses_all_that_psi_fast_exports():
    tree = ast.parse((ROOT / "tests" / "typed_use.py").read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert set(psi_fast.__all__) <= used
