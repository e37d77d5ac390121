"""What is written of the package in several places is the same, and it is whole where it is installed."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import psi_fast

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_of_this_version_and_licence():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    told = dict(re.findall(r"^([\w-]+): (\S.*)$", text, re.MULTILINE))
    assert (told["cff-version"], told["version"], told["license"]) == ("1.2.0", PROJECT["version"], PROJECT["license"])
    assert "arXiv:2508.16950" in text


def test_the_changelog_has_the_parts_of_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    parts = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert set(parts) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert len(parts) >= 3


def test_the_installed_package_says_what_it_is():
    about = metadata.metadata("psi-fast")
    assert (about["Version"], about["License-Expression"]) == (PROJECT["version"], PROJECT["license"])
    assert set(about.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    (command,) = metadata.entry_points(group="console_scripts", name="psi-fast")
    assert command.value == PROJECT["scripts"]["psi-fast"]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert metadata.distribution("psi-fast").read_text("licenses/LICENSE") == licence


def test_what_is_no_code_is_installed_too():
    package = Path(psi_fast.__file__).parent
    for pattern in ("py.typed", "data/*", "report/templates/*.jinja", "report/assets/*.js", "report/assets/*.css"):
        assert list(package.glob(pattern)), pattern
