"""Links of the pages lead somewhere, and each promise has tests that there are."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import psi_fast
import psi_fast_kernels

ROOT = Path(__file__).resolve().parents[1]
PROMISES = ROOT / "docs" / "promises.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "kernels").glob("*.md")])
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:psi_fast|kernels|tests|benchmarks)/[\w./-]+)(?::(\w+))?`")
PACKAGES = {
    "psi_fast": Path(psi_fast.__file__).parent,
    "kernels": Path(psi_fast_kernels.__file__).parents[1],
}


def place_of(name: str) -> Path:
    """Where a file of the repository is: those of the packages as they are imported."""
    first, _, rest = name.partition("/")
    packaged = first == "psi_fast" or name.startswith("kernels/psi_fast_kernels")
    return PACKAGES[first] / rest if packaged else ROOT / name


def text_of(page: Path) -> str:
    """Without blocks of code, in which brackets are no links."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@cache
def found_tests(path: Path) -> set[str]:
    """Functions of a test file that pytest takes, those of classes among them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def rows_of(page: Path) -> list[list[str]]:
    """Cells of every row of a page's tables, without heads."""
    lines = re.sub(r"^\|.*\n\|[-|]+\n", "", text_of(page), flags=re.MULTILINE).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for _, target in LINK.findall(text_of(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = place_of((page.parent / name).resolve().relative_to(ROOT).as_posix()) if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_each_promise_names_its_tests():
    rows = rows_of(PROMISES)
    assert len(rows) >= 40
    for row in rows:
        assert len(row) == 3, row
        found = LINK.findall(row[2])
        assert found, f"no test holds: {row[0]}"
        assert LINK.sub("", row[2]).strip(", ") == "", row[2]
        for name, target in found:
            file = (PROMISES.parent / target).resolve()
            assert file.is_relative_to(ROOT / "tests"), target
            assert name in found_tests(file), f"{name} is not in {target}"


def defined(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_what_contributors_are_told_of_is_there():
    named = NAMED.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(named) > 40
    for name, inside in named:
        assert place_of(name).exists(), name
        assert not inside or inside in defined(place_of(name)), f"{inside} is not in {name}"
