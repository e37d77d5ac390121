"""Every number in a report's data against the run's own files, by ways of its own."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image
from safetensors.numpy import load_file
from scipy.special import expit, logit
from tiny_report import Read

from psi_fast import build_report
from psi_fast.report.summary import NUMBERS, psi_series
from psi_fast.scores import FLAGS

LAYERS = ("1", "3")
DEAD = 1
"""Channel of layer "3" that never varies."""


class Run:
    """A run folder's own files, read without psi_fast."""

    def __init__(self, folder):
        self.table = pd.read_parquet(folder / "scores.parquet")
        self.patches = pd.read_parquet(folder / "patches.parquet")
        self.kept = load_file(folder / "distributions.safetensors")

    def rows(self, layer):
        return np.flatnonzero(self.table["layer"] == layer)

    def of(self, layer, channel):
        own = self.patches
        return own[(own["layer"] == layer) & (own["channel"] == channel)].sort_values("rank")


def paint(number):
    """A picture that tells by its colours where one looks at: red grows along it, green across, blue with its number.

    A dark square and a bright one lie somewhere, for the network to look at.
    """
    rng, (width, height) = np.random.default_rng(number), ((90, 64), (66, 100), (64, 64), (94, 82))[number % 4]
    pixels = np.empty((height, width, 3))
    pixels[..., 0] = np.linspace(20, 200, width)
    pixels[..., 1] = np.linspace(30, 220, height)[:, None]
    pixels[..., 2] = 6 * number
    for colour in (0, 255):
        x, y = rng.integers(0, (width - 20, height - 20))
        pixels[y : y + 14, x : x + 20] = colour
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 pictures, a folder a class."""
    root = tmp_path_factory.mktemp("report") / "pictures"
    for i in range(40):
        (root / f"class{i % 5}").mkdir(parents=True, exist_ok=True)
        paint(i).save(root / f"class{i % 5}" / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory, images):
    """Two runs in folders of one name: the first has two layers, the second one of them, scored otherwise."""
    root, network = tmp_path_factory.mktemp("runs"), tiny.conv_network(tiny.Kill(DEAD, 0.5))
    first, second = root / "a" / "run", root / "b" / "run"
    tiny.score(network, LAYERS, str(images), out=first)
    tiny.score(network, "3", str(images), out=second, config=replace(tiny.CONFIG, seed=1, top_k=14, draws=11))
    return first, second


@pytest.fixture(scope="module")
def runs(folders):
    return [Run(folder) for folder in folders]


@pytest.fixture(scope="module")
def report(folders):
    return Read(build_report(folders, progress=False))


@pytest.fixture(scope="module", params=["1", "run/3", "run-2/3"])
def layer(request, report, runs):
    """(key, run, layer) of each layer of the report."""
    place = ("1", "run/3", "run-2/3").index(request.param)
    return SimpleNamespace(key=request.param, run=runs[(0, 0, 1)[place]], name=("1", "3", "3")[place], place=place)


def pairs(report, layer):
    """Of each channel of a layer: its number, its row in the run's table and what the report says of it."""
    rows = layer.run.rows(layer.name)
    return list(zip(layer.run.table["channel"].to_numpy()[rows], rows, report.channels(layer.key), strict=True))


def close(found, wanted, digits):
    """Whether numbers are those wanted, rounded to so many significant digits; None is no number."""
    found = np.array([np.nan if value is None else value for value in found], dtype=float)
    wanted = np.asarray(wanted, dtype=float)
    np.testing.assert_allclose(found, np.where(np.isfinite(wanted), wanted, np.nan), rtol=0.51 * 10.0 ** (1 - digits))


def square(size):
    """The box of the centre square of a picture."""
    short = min(size)
    left, top = (size[0] - short) // 2, (size[1] - short) // 2
    return left, top, left + short, top + short


def test_layers_of_several_runs_have_keys_of_their_own(report, runs):
    index = report.index
    assert [own["name"] for own in index["runs"]] == ["run", "run-2"]
    assert [(own["key"], own["run"], own["layer"]) for own in index["layers"]] == [
        ("1", 0, "1"),
        ("run/3", 0, "3"),
        ("run-2/3", 1, "3"),
    ]
    assert [own["first"] for own in index["layers"]] == [0, 5, 11]
    assert [own["channels"] for own in index["layers"]] == [5, 6, 6]
    assert [own["components"] for own in index["layers"]] == ["SQD"] * 3
    assert [own["images"] for own in index["runs"]] == [40, 40]


def test_the_table_is_that_of_the_runs(report, runs):
    table = pd.concat([run.table for run in runs], ignore_index=True)
    for name in NUMBERS:
        close(report.table[name], table[name], 6)
    assert len(set(report.table["log_psi"])) > 12
    assert report.table["channel"] == table["channel"].tolist()
    assert report.table["layer"] == [0] * 5 + [1] * 6 + [2] * 6
    assert report.table["sizes"] == [list(own) for own in table["cluster_sizes"]]
    names = report.index["concepts"]
    assert names == sorted({name for own in table["concepts"] for name in own})
    assert [[names[i] for i in own] for own in report.table["concepts"]] == [list(own) for own in table["concepts"]]


def test_flags_are_those_of_the_runs(report, runs):
    names = report.index["flags"]
    found = [[name for bit, name in enumerate(names) if own >> bit & 1] for own in report.table["flags"]]
    wanted = [sorted(own, key=names.index) for run in runs for own in run.table["flags"]]
    assert found == wanted
    assert found[5 + DEAD] == found[11 + DEAD] == ["dead"]
    assert report.index["flag_notes"] == FLAGS
    assert set(names) == set(FLAGS)


def test_patches_are_those_of_the_run(report, layer):
    for channel, _, found in pairs(report, layer):
        own, patches = layer.run.of(layer.name, channel), found["patches"]
        for name in ("image", "label", "cluster"):
            assert patches[name] == own[name].tolist()
        close(patches["activation"], own["activation"], 4)
        assert {len(values) for values in patches.values()} == {len(own)}
    assert len(own) == {"run-2/3": 14}.get(layer.key, 12)


def test_silhouettes_have_the_mean_s_and_points_the_spread_that_is_told(report, layer):
    for channel, row, found in pairs(report, layer):
        patches = found["patches"]
        if channel == DEAD and layer.name == "3":
            continue
        assert np.mean(patches["silhouette"]) == pytest.approx(layer.run.table["S"][row], abs=2e-3)
        x, y = np.array(patches["x"]), np.array(patches["y"])
        assert abs(x.mean()) < 2e-3
        assert abs(y.mean()) < 2e-3
        first, second = found["explained"]
        assert 0 < second <= first <= 1
        assert y.var() / x.var() == pytest.approx(second / first, rel=0.02)


def test_clusters_are_those_of_the_run(report, layer):
    for channel, row, found in pairs(report, layer):
        own, clusters = layer.run.of(layer.name, channel), found["clusters"]
        assert [one["size"] for one in clusters] == list(layer.run.table["cluster_sizes"][row])
        assert [one["concepts"][0][0] for one in clusters] == list(layer.run.table["concepts"][row])
        for i, one in enumerate(clusters):
            counts = own.loc[own["cluster"] == i, "label"].value_counts()
            assert dict(map(tuple, one["classes"])) == counts.to_dict()
            assert [count for _, count in one["classes"]] == sorted(counts, reverse=True)
            cosines = [cosine for _, cosine in one["concepts"]]
            assert cosines == sorted(cosines, reverse=True)
            assert len(cosines) == 5
            assert -1 <= min(cosines) < max(cosines) <= 1


def test_nulls_are_the_run_s_draws(report, layer):
    for _, row, found in pairs(report, layer):
        table = layer.run.table.iloc[row]
        assert set(found["nulls"]) == ({"S", "Q", "D"} if table["k"] else set())
        for name, own in found["nulls"].items():
            draws = layer.run.kept[f"{name}_null"][row].astype(float)
            close([own["low"], own["high"]], [draws.min(), draws.max()], 5)
            if draws.max() > draws.min():
                assert own["counts"] == np.histogram(draws, 32)[0].tolist()
            assert sum(own["counts"]) == len(draws)
            told = [own[of] for of in ("observed", "mean", "sd", "z", "p")]
            close(told, [table[f"{name}{of}"] for of in ("", "_null_mean", "_null_sd", "_z", "_p")], 5)


def test_activations_are_the_images_maxima_with_the_band_of_the_patches(report, layer):
    for channel, row, found in pairs(report, layer):
        own, maxima = layer.run.of(layer.name, channel)["activation"], layer.run.kept["image_maxima"][row].astype(float)
        ends = min(maxima.min(), own.min()), max(maxima.max(), own.max())
        close([found["activations"][name] for name in ("low", "high")], ends, 4)
        close(found["activations"]["band"], [own.min(), own.max()], 4)
        if ends[0] < ends[1]:
            assert found["activations"]["counts"] == np.histogram(maxima, 32, ends)[0].tolist()
        assert sum(found["activations"]["counts"]) == 40


def test_a_channel_without_score_shows_its_patches_alone(report, runs):
    found, own = report.channels("run/3")[DEAD], runs[0].of("3", DEAD)
    assert report.table["psi"][5 + DEAD] is None
    assert report.table["strip"][5 + DEAD] == []
    patches = found["patches"]
    assert patches["image"] == own["image"].tolist()
    assert patches["cluster"] == [-1] * 12
    assert patches["silhouette"] == [None] * 12
    assert patches["x"] == patches["y"] == [None] * 12  # it was not embedded
    assert (found["clusters"], found["nulls"]) == ([], {})
    assert found["activations"]["band"] == [0.5, 0.5]
    assert found["activations"]["counts"] == [40] + [0] * 31
    assert found["neighbours"]["concepts"] == []


def test_neighbours_are_rows_of_the_whole_report(report, runs):
    held, concepts = [], []  # of each channel of the report
    for run, name in ((runs[0], "1"), (runs[0], "3"), (runs[1], "3")):
        for row in run.rows(name):
            own = run.of(name, run.table["channel"][row])
            own = own[own["cluster"] >= 0]
            held.append({(image, *box) for image, box in zip(own["image"], own["box"], strict=True)})
            concepts.append({})
            for concept, size in zip(run.table["concepts"][row], run.table["cluster_sizes"][row], strict=True):
                concepts[-1][concept] = concepts[-1].get(concept, 0) + size / len(own)
    seen = 0
    for own in report.index["layers"]:
        part = range(own["first"], own["first"] + own["channels"])
        for row, found in zip(part, report.channels(own["key"]), strict=True):
            others = [j for j in part if j != row]
            shared = {j: len(held[row] & held[j]) for j in others}
            assert {j: count for j, count, _ in found["neighbours"]["patches"]} == {
                j: n for j, n in shared.items() if n
            }
            for j, count, jaccard in found["neighbours"]["patches"]:
                assert jaccard == round(count / len(held[row] | held[j]), 3)
            alike = {
                j: sum(min(share, concepts[j].get(name, 0)) for name, share in concepts[row].items()) for j in others
            }
            assert dict(map(tuple, found["neighbours"]["concepts"])) == pytest.approx(
                {j: share for j, share in alike.items() if share > 0}, abs=6e-4
            )
            seen += len(found["neighbours"]["patches"])
    assert seen > 4


def test_psi_is_counted_beside_its_null_draws_and_random_channels(report, layer):
    run, rows = layer.run, layer.run.rows(layer.name)
    table = run.table.iloc[rows]
    drawn = [
        expit((run.kept[f"{name}_null"][rows] - table[f"{name}_null_mean"].to_numpy()[:, None])
              / table[f"{name}_null_sd"].to_numpy()[:, None])
        for name in "SQD"
    ]  # fmt: skip
    psi = np.prod(drawn, axis=0).ravel()
    number = {"1": 0, "3": 1}[layer.name] if len(run.rows("1")) else 0
    parts = {
        "channels": table["psi"].dropna().to_numpy(),
        "null draws": psi[np.isfinite(psi)],
        "random patches": np.exp(run.kept["random_log_psi"][number]),
    }
    for kind, scale in (("log_psi", np.log), ("log_odds", lambda psi: logit(psi) / np.log(10))):
        series = report.layer(layer.key)[kind]
        assert [own["name"] for own in series] == list(parts)
        low, high = series[0]["low"], series[0]["high"]
        for own in series:
            assert (own["low"], own["high"], len(own["shares"])) == (low, high, 48)
            values = scale(parts[own["name"]]).clip(low, high)
            counts = np.histogram(values, 48, (low, high))[0]
            moved = np.abs(np.array(own["shares"]) * len(values) - counts).sum()
            assert moved <= 2, "one value on the edge of a bin"
            assert sum(own["shares"]) == pytest.approx(1, abs=2e-3)


def test_outermost_bins_hold_what_lies_beyond():
    rng = np.random.default_rng(0)
    channels = np.r_[rng.uniform(-3, -1, 996), -50, -60, -70, np.nan]  # less than 1 in 200 lie far out
    own = SimpleNamespace(
        scores=SimpleNamespace(table=pd.DataFrame({"log_psi": np.r_[channels, 9.0]})),
        layers={"a": np.arange(1000)},
        null_log_psi=lambda _: rng.uniform(-4, -2, 500),
        random_log_psi=lambda _: np.full(100, np.nan),
    )
    found = {one["name"]: one for one in psi_series(own, "a")["log_psi"]}
    assert [(one["low"], one["high"]) for one in found.values()] == [(-4, 0)] * 3
    channels = channels[:-1]
    counts = np.histogram(channels, 48, (-4, 0))[0]
    assert counts[0] == 0
    assert np.round(np.array(found["channels"]["shares"]) * 999).tolist() == [3, *counts[1:]]
    assert found["random patches"]["shares"] == [0] * 48
    odds = {one["name"]: one for one in psi_series(own, "a")["log_odds"]}["channels"]
    values = logit(np.exp(channels)) / np.log(10)
    assert odds["high"] >= np.quantile(values, 0.995)
    wanted = np.histogram(values.clip(odds["low"], odds["high"]), 48, (odds["low"], odds["high"]))[0]
    np.testing.assert_allclose(np.array(odds["shares"]) * 999, wanted, atol=0.5)


def others(images, name, box):
    """The same part of other pictures, and parts of this one half a patch away: what a wrong tile would show."""
    x0, y0, x1, y1 = box
    for other in sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))[::3]:
        if other != name:
            yield other, box
    for x, y in ((x0 - x1, 0), (x1 - x0, 0), (0, y0 - y1), (0, y1 - y0)):
        yield name, (x0 + x / 2, y0 + y / 2, x1 + x / 2, y1 + y / 2)


def assert_shows(images, tile, name, box):
    """The tile is twice as near to the patch, cut from the picture itself, as to any of the `others`.

    A patch that is no square keeps its shape.
    """
    side = len(tile)
    off = []
    for other, part in ((name, box), *others(images, name, box)):
        with Image.open(images / other) as image:
            part = np.round(part, 3)  # the table's float32 end a hair beyond a picture
            if part.min() >= 0 and (part[2:] <= image.size).all():
                shape = part[2:] - part[:2]
                shape = [side, side] if np.ptp(shape) * 32 / min(image.size) <= 1 else shape * side / shape.max()
                width, height = map(round, shape)
                x, y = (side - width) // 2, (side - height) // 2
                held = image.resize((width, height), Image.Resampling.BICUBIC, box=tuple(part))
                off.append(np.abs(tile[y : y + height, x : x + width] - np.asarray(held, dtype=float)).mean())
    assert off[0] < min(off[1:]) / 2


def test_tiles_show_the_patches(report, layer, images):
    about, found = report.layer(layer.key), []
    for place, (channel, _, one) in enumerate(pairs(report, layer)):
        own = layer.run.of(layer.name, channel)
        for number, name, box in zip(one["patches"]["tile"], own["image"], own["box"], strict=True):
            tile = report.tile(about["patches"], f"{about['folder']}/patches", place, number)
            assert_shows(images, tile, name, box)
            found.append(tile)
    assert len(found) > 50


def test_strips_show_the_first_patch_of_each_cluster(report, layer, images):
    about, found = report.layer(layer.key), []
    for place, (channel, row, _) in enumerate(pairs(report, layer)):
        own = layer.run.of(layer.name, channel)
        numbers = report.table["strip"][about["first"] + place]
        assert len(numbers) == layer.run.table["k"][row]
        for cluster, number in enumerate(numbers):
            first = own[own["cluster"] == cluster].iloc[0]
            tile = report.tile(about["strip"], f"{about['folder']}/strip", place, number)
            assert_shows(images, tile, first["image"], first["box"])
            found.append(tile)
    assert len(found) >= 10


def test_whole_images_have_the_patches_boxes_in_them(report, layer, images):
    about, number = report.index["runs"][report.layer(layer.key)["run"]], report.layer(layer.key)["run"]
    seen = {}
    for channel, _, found in pairs(report, layer):
        own, patches = layer.run.of(layer.name, channel), found["patches"]
        for name, whole, box, part in zip(own["image"], patches["whole"], own["box"], patches["box"], strict=True):
            with Image.open(images / name) as image:
                left, top, right, _ = square(image.size)
            wanted = (np.asarray(box) - [left, top, left, top]) / (right - left)
            np.testing.assert_allclose(part, wanted.clip(0, 1), atol=1e-3)
            assert seen.setdefault(name, whole) == whole
    assert len(set(seen.values())) == len(seen) > 20
    for name, whole in seen.items():
        tile = report.tile(about["whole"], f"r{number}/images", whole, whole % 256)
        with Image.open(images / name) as image:
            box = square(image.size)
        assert_shows(images, tile, name, box)
