"""docs/outputs.md describes what a run writes, no more and no less."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from safetensors import safe_open
from test_text_head import Head

import psi_fast
from psi_fast.experiments.outcome import claim_table
from psi_fast.experiments.statistics import Claim

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "outputs.md").read_text(encoding="utf-8")
TENSORS = {"F32": "float32", "F64": "float64", "I64": "int64"}


def described(section: str) -> dict[str, list[str]]:
    """Name -> the other cells of its row, from the last table of a section; a first cell may hold several names."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert text is not None, section
    rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in text[1].splitlines() if line.startswith("| `")]
    return {name: [cell.strip() for cell in rest] for names, *rest in rows for name in re.findall(r"`([^`]+)`", names)}


def written_types(schema: pa.Schema) -> dict[str, str]:
    """Column -> type in the page's words."""

    def word(kind: pa.DataType) -> str:
        if pa.types.is_list(kind):
            return f"list of {word(kind.value_type)}"
        return "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else kind.to_pandas_dtype().__name__

    return {field.name: word(field.type) for field in schema}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and scores of a run with a dead channel, so that a list of flags has an item, and with a text head."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    network = tiny.conv_network(tiny.Kill(1))
    scores = tiny.score(
        network, "3", out=folder, config=replace(tiny.CONFIG, distinctness="pairwise"), text_head=Head()
    )
    return folder, scores


@pytest.mark.parametrize("name", ["scores", "patches"])
def test_columns_and_their_types(run, name):
    told = {column: cells[0] for column, cells in described(f"{name}.parquet").items()}
    assert list(told.items()) == list(written_types(pq.read_schema(run[0] / f"{name}.parquet")).items())


@pytest.mark.parametrize(("name", "metadata"), [("embeddings", ["concepts"]), ("distributions", [])])
def test_tensors(run, name, metadata):
    with safe_open(run[0] / f"{name}.safetensors", framework="np") as file:
        held = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        written = {name: (TENSORS[own.get_dtype()], own.get_shape()) for name, own in held.items()}
        assert list(file.metadata() or {}) == metadata
    table, patches, concepts = run[1].table, run[1].patches, run[1].manifest["concepts"]
    sizes = {"C": len(table), "K": 1 + patches["rank"].max(), "P": concepts, "d": 10, "e": 4}
    sizes |= {"b": tiny.CONFIG.draws, "n": run[1].manifest["images"], "L": 1}
    if name == "embeddings":
        sizes["U"] = written["unique"][1][0]
    told = described(f"{name}.safetensors")
    assert {
        tensor: (kind, [sizes.get(letter) or int(letter) for letter in shape.strip("[]").split(", ")])
        for tensor, (kind, shape, _) in told.items()
    } == written


def test_keys_of_the_manifest(run):
    manifest = json.loads((run[0] / "manifest.json").read_text(encoding="utf-8"))
    told = described("manifest.json")
    assert set(told) == set(manifest)
    for key in ("bank", "patch"):
        own = manifest[key]["3"] if key == "patch" else manifest[key]
        assert re.findall(r"`(\w+)`", told[key][-1]) == list(own), key


def test_files_are_named(run):
    assert {path.name for path in run[0].iterdir()} == set(re.findall(r"^\| \[`([^`]+)`\]", PAGE, re.MULTILINE))


def test_columns_of_claims():
    table = claim_table([Claim("one", 1.0)])
    told = described("An experiment's files")
    assert list(told) == list(table)
    words = {"str": "text", "object": "text"}
    assert [cells[0] for cells in told.values()] == [words.get(str(kind), str(kind)) for kind in table.dtypes]


def test_a_dead_channel_is_as_the_page_says(run):
    table, patches = run[1].table.set_index("channel"), run[1].patches
    dead = table.loc[1]
    assert (dead["flags"], dead["k"], dead["cluster_sizes"], dead["concepts"]) == (["dead"], 0, [], [])
    names = list(table)
    unscored = ["psi", "log_psi", "p", "q", *names[names.index("S") : names.index("S_z_independent") + 1]]
    unscored += ["clarity", "polysemanticity", "monosemanticity"]
    assert dead[unscored].isna().all()
    assert (patches.loc[patches["channel"] == 1, "cluster"] == -1).all()
    assert (patches["channel"] == 1).sum() == tiny.CONFIG.top_k


def test_flags_are_described():
    source = (Path(psi_fast.__file__).parent / "scores.py").read_text(encoding="utf-8")
    put = set(re.findall(r'\["([a-z_]+)"\]', source[source.index("flags: list") : source.index("columns: dict")]))
    assert put == {"dead", "few_patches", "unselective"}
    assert set(described("Flags")) == put | {f"degenerate:{name}" for name in "SQD"}


def test_where_q_is_degenerate_s_and_d_give_the_score_without_labels():
    rng = np.random.default_rng(0)
    units, text = rng.normal(size=(3, 20, 8)), rng.normal(size=(30, 8))
    labels = np.stack([np.zeros(20, int), np.arange(20), np.arange(20) % 2])
    given = {"text": text, "config": psi_fast.PSIConfig(draws=19), "device": "cpu"}
    table = psi_fast.score_embeddings(units, labels=labels, **given).table
    without = psi_fast.score_embeddings(units, **given).table
    assert table["flags"].tolist() == [["degenerate:Q"], ["degenerate:Q"], []]
    assert (table["p"][:2] == 1).all()
    assert (table["psi"][:2] <= 0.5).all()
    np.testing.assert_allclose(table["S_hat"] * table["D_hat"], without["psi"], rtol=1e-12)
    np.testing.assert_array_equal(np.maximum(table["S_p"], table["D_p"]), without["p"])
