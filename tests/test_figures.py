"""Figures of a run: what is drawn is what the run holds."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from matplotlib import colors
from scipy.special import logit
from scipy.stats import rankdata, spearmanr
from tiny_stored import DEAD, LAYERS, two_layers, with_swaps

from psi_fast.calibration import log_odds
from psi_fast.details import open_details
from psi_fast.errors import InputError
from psi_fast.figures import CHANNELS, COMPARISONS, OVERVIEWS, PICTURES, RUNS
from psi_fast.figures.channel import ITEMS
from psi_fast.figures.style import COLOURS, GREY, PART_COLOURS, panels, plain, rendered
from psi_fast.figures.thumbnails import SHOWN, SIDE
from psi_fast.progress import Progress
from psi_fast.report.pictures import open_pictures

CHANNEL = 7
SCORED = [name for name in (*CHANNELS, *PICTURES) if name != "activations"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_pictures(tmp_path_factory.mktemp("images"), count=40)


@pytest.fixture(scope="module")
def details(images, tmp_path_factory):
    return two_layers(tmp_path_factory.mktemp("figures") / "run", images)


@pytest.fixture(scope="module")
def labelless(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelless") / "run"
    tiny.score(images=tiny.image_set(labelled=False), out=folder)
    return open_details(folder)


def of(name, details, row=CHANNEL):
    """The panels of a channel's figure, and the figure."""
    figure = (CHANNELS | PICTURES)[name](details, row)
    return figure.axes, figure


def text_of(legend):
    return [text.get_text() for text in legend.get_texts()]


def heights(container):
    return [patch.get_height() for patch in container]


def widths(container):
    return [patch.get_width() for patch in container]


def odds_of(log_psi):
    """log10 of PSI / (1 - PSI), as scipy has it."""
    return logit(np.exp(np.asarray(log_psi))) / np.log(10)


def assert_spread(panel, number, values):
    """A box is of these values: quartiles; from 5 % to 95 %; median."""
    corners = panel.patches[number].get_path().vertices[:, 1]
    np.testing.assert_allclose([corners.min(), corners.max()], np.percentile(values, [25, 75]))
    lines = [
        line.get_ydata() for line in panel.lines if line.get_label().startswith("_") and mid_of(line) == number + 1
    ]
    np.testing.assert_allclose([np.min(lines), np.max(lines)], np.percentile(values, [5, 95]))
    assert any(np.allclose(ends, np.median(values)) for ends in lines)


def mid_of(line):
    return np.mean(line.get_xdata())


def test_log_psi_has_channels_and_both_baselines(details):
    figure = OVERVIEWS["log-psi"](details, LAYERS)
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["layer 1", "layer 3"]
    for layer, panel in zip(LAYERS, figure.axes, strict=True):
        own = details.scores.table.loc[details.layers[layer], "log_psi"].dropna()
        assert text_of(panel.get_legend()) == [
            f"channels ({len(own)})",
            "random-patch channels (100)",
            f"null draws ({9 * len(own)})",
        ]
        outlines = [patch.get_xy() for patch in panel.patches]
        edges = np.unique(outlines[0][:, 0])
        assert len(edges) == 41
        for values, outline in zip(
            (own, details.random_log_psi(layer), details.null_log_psi(layer)), outlines, strict=True
        ):
            counts = np.histogram(-np.asarray(values), edges)[0]
            assert counts.sum() == len(values)
            np.testing.assert_allclose(outline[1:81:2, 1], 100 * counts / len(values))
        assert panel.get_xscale() == "log"
        assert panel.xaxis.get_inverted()  # the axis is of -ln PSI
        label = panel.xaxis.get_major_formatter()
        assert [label(0.1, 0), label(10, 0), label(1e-6, 0)] == ["\N{MINUS SIGN}0.1", "\N{MINUS SIGN}10", "$-10^{-6}$"]


def test_ln_psi_that_rounds_to_zero_has_a_place(details):
    table = details.scores.table.copy()
    table.loc[0, "log_psi"] = 0.0
    sure = replace(details, scores=replace(details.scores, table=table))
    panel = OVERVIEWS["log-psi"](sure, ["1"]).axes[0]
    outline = panel.patches[0].get_xy()
    assert outline[:, 0].min() == pytest.approx(1e-12)
    assert outline[1, 1] == pytest.approx(20)  # one of five channels


def test_odds_have_channels_and_both_baselines(details):
    figure = OVERVIEWS["log-odds"](details, LAYERS)
    for layer, panel in zip(LAYERS, figure.axes, strict=True):
        own = details.scores.table.loc[details.layers[layer], "log_psi"].dropna()
        parts = [odds_of(values) for values in (own, details.random_log_psi(layer), details.null_log_psi(layer))]
        outlines = [patch.get_xy() for patch in panel.patches]
        edges = np.unique(outlines[0][:, 0])
        ends = [np.quantile(values, [0.005, 0.995]) for values in parts]
        np.testing.assert_allclose([edges[0], edges[-1]], [np.min(ends), np.max(ends)])
        np.testing.assert_allclose(np.diff(edges), (edges[-1] - edges[0]) / 40)
        for values, outline in zip(parts, outlines, strict=True):
            counts = np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
            assert counts.sum() == len(values)
            np.testing.assert_allclose(outline[1:81:2, 1], 100 * counts / len(values))
        assert panel.get_xlabel().endswith("of PSI / (1 \N{MINUS SIGN} PSI)")
        assert text_of(panel.get_legend())[0] == f"channels ({len(own)})"


def test_odds_of_psi():
    log_psi = np.array([-800.0, -5, -0.1, -1e-20, 0, np.nan])
    found = log_odds(log_psi)
    np.testing.assert_allclose(found[1:3], odds_of(log_psi[1:3]))
    np.testing.assert_allclose(found[[0, 3, 4]], [-800 / np.log(10), 20, 300])
    assert np.isnan(found[5])


def test_seconds_of_each_stage(details):
    figure = RUNS["seconds"](details)
    (panel,) = figure.axes
    seconds = details.scores.manifest["seconds"]
    assert len(seconds) > 3
    assert [label.get_text() for label in panel.get_yticklabels()] == list(seconds)
    assert widths(panel.containers[0]) == list(seconds.values())
    assert [text.get_text() for text in panel.texts] == [f"{value:.1f} s" for value in seconds.values()]
    assert panel.yaxis.get_inverted()
    assert figure.get_suptitle() == "time by stage of run"


def test_components_against_each_other(details, labelless):
    figure = OVERVIEWS["components"](details, LAYERS)
    pairs = [("S", "Q"), ("S", "D"), ("Q", "D")]
    for panel, (layer, (across, up)) in zip(
        figure.axes, [(layer, pair) for layer in LAYERS for pair in pairs], strict=True
    ):
        own = details.scores.table.iloc[details.layers[layer]].dropna(subset="psi")
        places = np.concatenate([part.get_offsets() for part in panel.collections])
        expected = own[[f"{across}_hat", f"{up}_hat"]].to_numpy()
        np.testing.assert_allclose(sorted(places.tolist()), sorted(expected.tolist()))
        assert (panel.get_xlabel(), panel.get_ylabel()) == (f"{across}^", f"{up}^")
        assert panel.get_xlim() == panel.get_ylim() == (0, 1)
        assert panel.get_title(loc="left") == (f"layer {layer}" if (across, up) == ("S", "Q") else "")
    assert text_of(figure.legends[0]) == ["q ≥ .05", "q < .05"]
    table = details.scores.table.assign(q=np.linspace(0, 0.1, 11))
    clear = replace(details, scores=replace(details.scores, table=table))
    figure = OVERVIEWS["components"](clear, ["1"])
    assert text_of(figure.legends[0]) == ["q ≥ .05 (0)", "q < .05 (5)"]
    assert len(OVERVIEWS["components"](labelless, [tiny.LAYER]).axes) == 1  # S and D alone


def test_layers_have_quartiles_and_baselines(details):
    (panel,) = OVERVIEWS["layers"](details, LAYERS).axes
    for number, layer in enumerate(LAYERS):
        own = odds_of(details.scores.table.loc[details.layers[layer], "log_psi"].dropna())
        assert_spread(panel, number, own)
    random, null = (line.get_ydata() for line in panel.lines if line.get_label().startswith("median of"))
    np.testing.assert_allclose(random, [np.median(odds_of(details.random_log_psi(layer))) for layer in LAYERS])
    np.testing.assert_allclose(null, [np.median(odds_of(details.null_log_psi(layer))) for layer in LAYERS])
    assert [label.get_text() for label in panel.get_xticklabels()] == LAYERS
    assert panel.get_ylabel().endswith("of PSI / (1 \N{MINUS SIGN} PSI)")


def test_flags_are_counted(details, labelless):
    figure = OVERVIEWS["flags"](details, LAYERS)
    for layer, panel in zip(LAYERS, figure.axes, strict=True):
        names = [label.get_text() for label in panel.get_yticklabels()]
        flags = details.scores.table["flags"].iloc[details.layers[layer]]
        expected = [sum(name in own for own in flags) for name in names]
        assert widths(panel.containers[0]) == expected
        assert [text.get_text() for text in panel.texts] == [
            f"{count} ({100 * count / len(flags):.1f} %)" for count in expected
        ]
    assert widths(panel.containers[0])[0] == 1  # the dead channel
    (panel,) = OVERVIEWS["flags"](labelless, [tiny.LAYER]).axes
    assert "degenerate:Q" not in [label.get_text() for label in panel.get_yticklabels()]


def test_nulls_have_their_draws_and_what_was_observed(details):
    axes, _ = of("nulls", details)
    own = details.scores.table.loc[CHANNEL]
    for name, panel in zip("SQD", axes, strict=True):
        (bars,) = panel.containers
        edges = [bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()]
        np.testing.assert_allclose(heights(bars), np.histogram(details.null_draws(name)[CHANNEL], edges)[0])
        assert sum(heights(bars)) == 9
        ((start, end),) = panel.collections[0].get_segments()
        assert start[0] == end[0] == pytest.approx(own[name])
        assert end[1] >= max(heights(bars))
        assert panel.get_title(loc="left") == f"{name}: z = {own[f'{name}_z']:.1f}, p = {own[f'{name}_p']:.2g}"
        assert colors.same_color(bars[0].get_facecolor()[:3], GREY)
        assert colors.same_color(panel.collections[0].get_color(), PART_COLOURS[name])
        assert text_of(panel.get_legend()) == ["9 null draws", f"observed: {own[name]:.3f}"]


def test_a_null_that_does_not_vary_is_told(details):
    table = details.scores.table.copy()
    table.loc[CHANNEL, "Q_null_sd"] = 0
    axes, _ = of("nulls", replace(details, scores=replace(details.scores, table=table)))
    assert axes[1].get_title(loc="left") == "Q: its null does not vary"


def test_silhouettes_are_sorted_by_cluster(details):
    (panel,), _ = of("silhouettes", details)
    values, labels = details.silhouettes([CHANNEL])[0], details.scores.labels[CHANNEL]
    own = details.scores.table.loc[CHANNEL]
    assert len(panel.containers) == own["k"] >= 2
    places = []
    for cluster, bars in enumerate(panel.containers):
        np.testing.assert_allclose(widths(bars), np.sort(values[labels == cluster])[::-1])
        assert colors.same_color(bars[0].get_facecolor(), COLOURS[cluster])
        places += [bar.get_y() for bar in bars]
    assert np.diff(places).min() >= 1  # none hides another
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        f"{concept} ({size})" for concept, size in zip(own["concepts"], own["cluster_sizes"], strict=True)
    ]
    (line,) = panel.lines
    assert line.get_xdata()[0] == pytest.approx(own["S"])


@pytest.mark.parametrize("row", [CHANNEL, DEAD])
def test_activations_of_images_and_patches(details, row):
    (panel,), figure = of("activations", details, row)
    assert panel.get_yscale() == "linear"
    assert panel.get_ylim()[0] == 0
    (bars,) = panel.containers
    maxima, patches = details.image_maxima[row], details.patches(row)["activation"]
    assert sum(heights(bars)) == len(maxima) == 40
    assert bars[0].get_x() <= maxima.min()
    assert bars[-1].get_x() + bars[-1].get_width() == pytest.approx(max(maxima.max(), bars[-1].get_x()), abs=0.6)
    band = next(patch for patch in panel.patches if patch not in list(bars))
    x0, x1 = band.get_x(), band.get_x() + band.get_width()
    assert (x0, x1) == pytest.approx((patches.min(), patches.max()))
    assert text_of(figure.legends[0])[0] == f"12 patches: {patches.min():.3g} to {patches.max():.3g}"


def test_map_shows_principal_coordinates(details):
    (panel,), figure = of("map", details)
    (places,), (shares,) = details.principal([CHANNEL])
    labels = details.scores.labels[CHANNEL]
    for cluster, points in enumerate(panel.collections):
        np.testing.assert_allclose(points.get_offsets(), places[labels == cluster])
    assert sum(len(points.get_offsets()) for points in panel.collections) == 12
    assert panel.get_xlabel() == f"first principal axis ({100 * shares[0]:.0f} % of the variance)"
    assert panel.get_ylabel() == f"second ({100 * shares[1]:.0f} %)"
    assert len(text_of(figure.legends[0])) == details.scores.table["k"][CHANNEL]
    assert (
        len({points.get_paths()[0].vertices.tobytes() for points in panel.collections}) > 1
    )  # shapes, not colours alone


@pytest.mark.parametrize("name", ["classes", "concepts"])
def test_bars_of_clusters(details, name):
    (panel,), _ = of(name, details)
    (found,) = (details.cluster_classes if name == "classes" else details.cluster_concepts)([CHANNEL], ITEMS)
    for bars, items in zip(panel.containers, found, strict=True):
        np.testing.assert_allclose(widths(bars), [value for _, value in items], rtol=1e-6)
    written = [label.get_text() for label in panel.get_yticklabels()]
    assert written == [text for items in found for text, _ in items]
    numbers = [text.get_text() for text in panel.texts]
    assert numbers == [f"{v:.0f}" if name == "classes" else f"{v:.2f}" for items in found for _, v in items]


def test_without_labels_there_are_no_classes(labelless):
    with pytest.raises(InputError, match="its images have no labels"):
        of("classes", labelless, 0)
    assert len(of("nulls", labelless, 0)[0]) == 2


def test_swaps_have_their_intervals(details):
    swapped, table = with_swaps(details, CHANNEL)
    (panel,), figure = of("swaps", swapped)
    for own, bar in zip(table.itertuples(), panel.containers, strict=True):
        point, _, (reach,) = bar
        assert point.get_xdata()[0] == pytest.approx(own.change_sd)
        np.testing.assert_allclose(reach.get_segments()[0][:, 0], [own.low, own.high])
    assert [label.get_text() for label in panel.get_yticklabels()] == list("abcde")
    assert figure.get_suptitle() == "channel 3/2: 16 hosts, 95 % intervals"
    with pytest.raises(
        InputError, match=r"patch-swap was run on 1 of the channels, and 3/3 is none of them; .*--channel-count"
    ):
        of("swaps", swapped, 8)
    with pytest.raises(InputError, match=r"no patch swaps; run `psi-fast experiment patch-swap \.\.\. --out .*run`"):
        of("swaps", details)


def test_clusters_show_their_patches(details):
    axes, figure = of("clusters", details)
    own, patches = details.scores.table.loc[CHANNEL], details.patches(CHANNEL)
    assert len(axes) == SHOWN * own["k"]
    pictures = open_pictures(details.scores.manifest, patches, bars=Progress(False))
    for cluster in range(own["k"]):
        line, mine = axes[cluster * SHOWN : (cluster + 1) * SHOWN], patches[patches["cluster"] == cluster][:SHOWN]
        assert mine["activation"].is_monotonic_decreasing
        assert [len(panel.images) for panel in line] == [1] * len(mine) + [0] * (SHOWN - len(mine))
        for panel, (_, patch) in zip(line, mine.iterrows(), strict=False):
            (row,) = pictures.rows([patch["image"]])
            (expected,) = pictures.tiles(np.array([row]), np.array([patch["box"]]), SIDE)
            np.testing.assert_array_equal(panel.images[0].get_array(), expected)
        assert line[0].get_title(loc="left") == f"{own['concepts'][cluster]} ({own['cluster_sizes'][cluster]})"
    assert figure.get_suptitle().startswith("channel 3/2")


def test_clusters_take_images_that_moved(details, images, tmp_path):
    moved = tmp_path / "moved"
    images.rename(moved)
    try:
        with pytest.raises(InputError, match="--images"):
            PICTURES["clusters"](details, CHANNEL)
        assert PICTURES["clusters"](details, CHANNEL, str(moved)).axes[0].images
    finally:
        moved.rename(images)


@pytest.mark.parametrize("name", SCORED)
def test_a_channel_without_score_is_told(details, name):
    swapped, _ = with_swaps(details, CHANNEL)
    with pytest.raises(InputError, match=r"channel 3/1 has no score \(dead\)|3/1 is none of them"):
        of(name, swapped, DEAD)


def test_compare_ranks_the_channels_both_have(details):
    table = details.scores.table
    rng = np.random.default_rng(1)
    other = table.assign(log_psi=table["log_psi"] * rng.uniform(0.3, 3, len(table))).drop(index=[0])
    other = other[::-1].reset_index(drop=True)  # in another order
    second = replace(details, scores=replace(details.scores, table=other))
    figure = COMPARISONS["compare"](details, second)
    assert len(figure.axes) == 2 * len(LAYERS)
    for panel, beside, layer in zip(figure.axes[::2], figure.axes[1::2], LAYERS, strict=True):
        both = table[table["layer"] == layer].merge(other[other["layer"] == layer], on="channel").dropna(subset="psi_x")
        expected = np.stack([rankdata(-both["log_psi_x"]), rankdata(-both["log_psi_y"])], 1)
        np.testing.assert_allclose(sorted(panel.collections[0].get_offsets().tolist()), sorted(expected.tolist()))
        rho = spearmanr(both["log_psi_x"], both["log_psi_y"]).statistic
        assert panel.get_title(loc="left").endswith(f"= {rho:.3f}, {len(both)} channels")
        assert all(label.endswith("\n(1: most polysemantic)") for label in (panel.get_xlabel(), panel.get_ylabel()))
        scored = [one.loc[one["layer"] == layer, "log_psi"].dropna() for one in (table, other)]
        for number, own in enumerate(scored):
            assert_spread(beside, number, odds_of(own))
        assert [label.get_text() for label in beside.get_xticklabels()] == [
            f"run\n{len(own)} channels" for own in scored
        ]
    third = replace(second, scores=replace(second.scores, table=other.assign(layer="2")))
    with pytest.raises(InputError, match=r"none in common: 1, 3 in .*run, 2 in .*"):
        COMPARISONS["compare"](details, third)
    few = replace(second, scores=replace(second.scores, table=other[other["channel"] < 1]))
    with pytest.raises(InputError, match=r"1 of the channels of 3 are scored in both .*; ranks take at least 3"):
        COMPARISONS["compare"](details, few)


def test_text_from_data_is_text():
    assert plain("a$b$ c\nd\te\x07") == r"a\$b\$ c d e"
    assert plain("x" * 300) == "x" * 31 + "…"
    assert plain("encoder.layers.11.mlp/1234", 12, end=True) == "….11.mlp/1234"[-12:].replace(".", "…", 1)
    with panels(1) as (figure, (panel,)):
        panel.set_title(plain(r"$\frac{1}$ <b> \alpha_1 $"))
    assert b"\\frac{1}$ &lt;b&gt; \\alpha_1 $" in rendered(figure, "svg")


def test_long_names_leave_room(details):
    table = details.scores.table.copy()
    names = {layer: f"model.encoder.layers.{layer}.mlp.fc1.output" for layer in LAYERS}
    table["layer"] = table["layer"].map(names)
    table["concepts"] = [[f"a rather long name of {name}" for name in own] for own in table["concepts"]]
    manifest = details.scores.manifest | {"layers": list(names.values())}
    long = replace(details, scores=replace(details.scores, table=table, manifest=manifest))
    for figure in (OVERVIEWS["layers"](long, list(names.values())), of("map", long)[1], of("classes", details)[1]):
        rendered(figure, "svg")  # which lays it out
        (panel,) = figure.axes
        assert panel.get_window_extent().height > 1.2 * figure.dpi
        for legend in figure.legends:
            assert legend.get_window_extent().x0 >= 0
            assert legend.get_window_extent().x1 <= figure.bbox.x1
