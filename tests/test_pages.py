"""Links of the pages lead somewhere, and each promise has tests that there are."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROMISES = ROOT / "docs" / "promises.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "kernels").glob("*.md")])
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


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
        file = page.parent / name if name else page
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
