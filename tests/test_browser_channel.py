"""A channel's page in a browser: its patches and what a pointer or a key shows of them, its charts, its neighbours, its keys."""

import re
import shutil

import numpy as np
import pytest
from browser import attributes
from PIL import Image
from reports import CHANNELS, CONFIG, DEAD, IMAGES, SWAPPED

from psi_fast.details import open_details

K = CONFIG.top_k
FIRST = 24
"""Patches of a cluster that are shown at first."""


@pytest.fixture(scope="module")
def order(single):
    """Channels in the order of the table."""
    return single.table.sort_values("log_psi", ascending=False, kind="stable")["channel"].tolist()


@pytest.fixture(scope="module")
def details(runs):
    return open_details(runs[0])


def patches_of(built, channel):
    """The channel's patches by cluster, then by rank: as the page shows them."""
    own = built.scores[0].patches
    return own.loc[own["channel"] == channel].sort_values(["cluster", "rank"]).reset_index(drop=True)


def chart(own, title):
    """The chart under a caption that begins so."""
    figures = own.find("#channel-charts figure")
    return figures.filter(has=own.find("figcaption").filter(has_text=re.compile(f"^{title}")))


def marks(figure, kind):
    return figure.locator(f"g.mark-{kind}.role-mark > *").count()


def test_a_row_opens_its_channel(visit, single, order):
    own = visit(single.index).go("channels")
    own.find("#channels tbody th a").nth(3).click()
    own.asks(f"#3/{order[3]}")
    assert own.text("#channel-name") == f"3/{order[3]}"
    assert own.find("#channel").is_visible()
    assert not own.find("#channels").is_visible()
    own.back()
    own.find("#channels tbody .strip").nth(5).click()
    own.asks(f"#3/{order[5]}")


def test_an_address_opens_its_channel_and_again_after_reload(visit, single):
    own = visit(single.index)
    for step in (lambda: own.go("3/7"), own.reload):
        step()
        assert own.text("#channel-name") == "3/7"
        assert own.page.title() == "3/7 \u2013 psi_fast"
        assert own.find(".patch").count() == K
    assert own.find("nav a[aria-current]").text_content() == "Channels"


def test_the_page_says_what_the_scores_are(visit, single):
    row = single.table.iloc[7]
    own = visit(single.index).go("3/7")
    facts = dict(zip(own.texts(".fact span"), own.texts(".fact b"), strict=True))
    facts = {name.split(" (")[0]: said for name, said in facts.items()}
    assert facts["PSI"] == f"{row['psi']:.4f}"
    assert facts["clusters"] == str(row["k"])
    assert [facts[f"{part} z"] for part in "SQD"] == [f"{row[f'{part}_z']:.1f}" for part in "SQD"]
    assert facts["% of random-patch channels at or below"] == f"{row['random_percentile']:.0f}"
    assert float(facts["q"]) == pytest.approx(row["q"], abs=0.005)
    assert float(facts["selectivity"]) == pytest.approx(row["selectivity"], rel=0.01)
    assert float(facts["largest activation"]) == pytest.approx(row["max_activation"], rel=0.01)


@pytest.mark.parametrize("channel", [7, 14, 59])
def test_clusters_are_those_of_the_table(visit, single, details, channel):
    row, patches = single.table.iloc[channel], patches_of(single, channel)
    own = visit(single.index).go(f"3/{channel}")
    clusters = own.find(".cluster")
    assert clusters.count() == row["k"]
    classes = details.cluster_classes(np.array([channel]))[0]
    concepts = details.cluster_concepts(np.array([channel]))[0]
    for i, cluster in enumerate(clusters.all()):
        assert cluster.locator("h3").text_content() == f"Cluster {i + 1} {row['cluster_sizes'][i]} patches"
        if cluster.locator(".all").count():
            cluster.locator(".all").click()
        assert cluster.locator(".patch").count() == row["cluster_sizes"][i]
        meters = cluster.locator(".meters")
        assert meters.nth(0).locator(".name").first.text_content() == row["concepts"][i]
        assert meters.nth(0).locator(".name").all_text_contents() == [name for name, _ in concepts[i]]
        cosines = [float(text) for text in meters.nth(0).locator(".value").all_text_contents()]
        np.testing.assert_allclose(cosines, [cosine for _, cosine in concepts[i]], atol=0.011)
        said = zip(*(meters.nth(1).locator(part).all_text_contents() for part in (".name", ".value")), strict=True)
        assert [(name, int(count)) for name, count in said] == [(name, int(count)) for name, count in classes[i]]
    labels = attributes(own.find(".patch"), "aria-label")
    assert len(labels) == len(patches)
    for label, (_, patch) in zip(labels, patches.iterrows(), strict=True):
        assert label.startswith(f"patch {patch['rank'] + 1}, activation ")
        assert label.endswith(f", class {patch['label']}, image {patch['image']}")


def drawn(own, place, folder, side):
    """What an element shows of its sheet, as an image of `side` px."""
    sheet, at, size, width = place.evaluate(
        "one => { const s = getComputedStyle(one);"
        " return [s.backgroundImage, s.backgroundPosition, s.backgroundSize, one.getBoundingClientRect().width]; }"
    )
    name = re.search(r'/(data/[^"]+)"', sheet)[1]
    x, y = (-float(part.removesuffix("px")) for part in at.split())
    with Image.open(folder / name) as image:
        scale = image.width / float(size.split("px")[0])
        box = [round(scale * edge) for edge in (x, y, x + width, y + width)]
        return np.asarray(image.convert("RGB").crop(box).resize((side, side)), dtype=float)


def difference(a, b):
    return np.abs(a - b).mean()


def square_of(source, name, side=32):
    """The image as the run had it: its centre square."""
    with Image.open(f"{source}/{name}") as image:
        margin = (np.array(image.size) - min(image.size)) / 2
        box = (*margin, *(np.array(image.size) - margin))
        return image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box=box)


def test_patches_show_the_pixels_that_were_scored(visit, single):
    patches = patches_of(single, 7).drop_duplicates("image").iloc[::3]
    own = visit(single.index).go("3/7")
    source = single.scores[0].manifest["source"]
    truth = []
    for _, patch in patches.iterrows():
        edges = (32 * on_square(patch, source)).round().astype(int)
        truth.append(
            np.asarray(square_of(source, patch["image"]).crop(tuple(edges.tolist())).resize((16, 16)), dtype=float)
        )
    shown = own.find(".patch")
    found = [drawn(own, shown.nth(place), single.index.parent, 16) for place in patches.index]
    far = np.array([[difference(a, b) for b in truth] for a in found])
    assert len(far) >= 8
    assert far.argmin(1).tolist() == list(range(len(far)))
    assert np.diag(far).mean() < 30


def seen(own):
    """The image under the pointer's note, its name and the outline's edges as parts of it."""
    own.find("#hover").wait_for()
    edges = own.run(
        "(() => { const a = document.querySelector('#hover .whole').getBoundingClientRect();"
        " const b = document.querySelector('#hover .outline').getBoundingClientRect();"
        " return [b.left - a.left, b.top - a.top, b.right - a.left, b.bottom - a.top].map(edge => edge / a.width); })()"
    )
    said = dict(zip(own.texts("#hover dt"), own.texts("#hover dd"), strict=True))
    return said, edges


def on_square(patch, source):
    """The patch's edges as parts of the centre square of its image."""
    with Image.open(f"{source}/{patch['image']}") as image:
        size = np.array(image.size)
    side = size.min()
    return ((np.array(patch["box"]).reshape(2, 2) - (size - side) / 2) / side).ravel()


def check_note(own, single, patch):
    said, edges = seen(own)
    assert (said["rank"], said["image"], said["class"]) == (str(patch["rank"] + 1), patch["image"], patch["label"])
    assert float(said["activation"]) == pytest.approx(patch["activation"], rel=0.01)
    source = single.scores[0].manifest["source"]
    np.testing.assert_allclose(edges, on_square(patch, source), atol=0.03)
    whole = drawn(own, own.find("#hover .whole"), single.index.parent, 16)
    assert difference(whole, np.asarray(square_of(source, patch["image"], 16), dtype=float)) < 25


def test_a_pointer_shows_the_patch_in_its_image(visit, single):
    patches = patches_of(single, 7)
    own = visit(single.index).go("3/7")
    assert not own.find("#hover").is_visible()
    for place in (0, 5, 9):
        own.find(".patch").nth(place).hover()
        check_note(own, single, patches.iloc[place])
    own.find("h1#channel-name").hover()
    own.find("#hover").wait_for(state="hidden")


def test_keys_show_the_patch_in_its_image(visit, single):
    patches = patches_of(single, 7)
    own = visit(single.index).go("3/7")
    own.find("#channel-after").focus()
    for place, key in enumerate(("Tab", "ArrowRight")):  # a stop a row of patches, and the arrows within it
        own.press(key)
        check_note(own, single, patches.iloc[place])
    own.press("Escape")
    own.find("#hover").wait_for(state="hidden")
    own.press("Enter")
    own.find("#hover").wait_for()
    own.press("Shift+Tab", "Shift+Tab")
    own.find("#hover").wait_for(state="hidden")
    assert own.run("document.activeElement.id") == "channel-after"


def test_the_note_stays_in_sight(visit, single):
    own = visit(single.index, (390, 500)).go("3/7")
    for place in (0, 3, 9):
        own.find(".patch").nth(place).focus()
        box = own.find("#hover").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["y"] >= 0


def test_all_patches_of_a_large_cluster_are_shown_when_asked_for(visit, single):
    [channel, *_] = [
        row["channel"] for _, row in single.table.iterrows() if max(row["cluster_sizes"], default=0) > FIRST
    ]
    size = single.table["cluster_sizes"].iloc[channel][0]
    own = visit(single.index).go(f"3/{channel}")
    cluster = own.find(".cluster").first
    assert cluster.locator(".patch").count() == FIRST
    assert cluster.locator(".all").text_content() == f"Show all {size}"
    cluster.locator(".all").press("Enter")
    assert cluster.locator(".patch").count() == size
    assert cluster.locator(".all").count() == 0
    said, _ = seen(own)
    assert said["rank"] == str(patches_of(single, channel)["rank"].iloc[FIRST] + 1)


def test_nulls_are_drawn_with_what_was_observed(visit, single):
    row = single.table.iloc[7]
    own = visit(single.index).go("3/7")
    for part in "SQD":
        figure = chart(own, f"{part}:")
        assert (marks(figure, "rect"), marks(figure, "rule")) == (32, 1)
        observed = float(re.match(r"observed (\S+),", figure.locator("p").text_content())[1])
        assert observed == pytest.approx(row[part], rel=0.01, abs=1e-4)
        bars = attributes(figure.locator("g.mark-rect.role-mark path"), "aria-label")
        counts = [int(re.search(r"null draws: (\d+)", label)[1]) for label in bars]
        assert sum(counts) == CONFIG.draws


def test_charts_hold_every_patch(visit, single, details):
    own = visit(single.index).go("3/7")
    silhouettes, points, activations = (chart(own, title) for title in ("Silhouettes", "Map of", "Activations"))
    assert marks(silhouettes, "rect") == K
    assert marks(points, "symbol") == K
    bars = activations.locator("g.mark-rect.role-mark")
    assert [one.locator("path").count() for one in bars.all()] == [1, 32]
    said = attributes(bars.nth(1).locator("path"), "aria-label")
    assert sum(int(re.search(r"images: (\d+)", label)[1]) for label in said) == details.image_maxima.shape[1] == IMAGES
    labels = attributes(points.locator("g.mark-symbol.role-mark path"), "aria-label")
    clusters = sorted(int(re.search(r"cluster: (\d+)", label)[1]) for label in labels)
    assert clusters == sorted((patches_of(single, 7)["cluster"] + 1).tolist())
    for figure in own.find("#channel-charts .plot").all():
        assert figure.get_attribute("role") == "img"
        assert "3/7" in figure.get_attribute("aria-label")


def test_swaps_are_drawn_where_patches_were_swapped(visit, single, details):
    table = details.swaps
    swapped = sorted(set(table["channel"]))
    assert len(swapped) == SWAPPED
    own = visit(single.index).go(f"3/{swapped[0]}")
    figure = chart(own, "Patch swap")
    conditions = table.loc[table["channel"] == swapped[0]]
    labels = attributes(figure.locator("g.mark-rect.role-mark path"), "aria-label")
    assert len(labels) == len(conditions) == 5
    for name, change in zip(conditions["condition"], conditions["change_sd"], strict=True):
        [label] = [one for one in labels if f"condition: {name}" in one]
        found = re.search(r"standard deviations\): ([\u2212\d.e-]+)", label)[1].replace("\u2212", "-")
        assert float(found) == pytest.approx(change, rel=0.01)
    other = next(channel for channel in range(CHANNELS) if channel not in (DEAD, *swapped))
    own.go(f"3/{other}")
    assert chart(own, "Silhouettes").count() == 1
    assert chart(own, "Patch swap").count() == 0


def test_neighbours_are_linked(visit, single, details):
    found = details.neighbours()[7]
    own = visit(single.index).go("3/7")
    for kind, rows in (("patches", found.patches), ("concepts", found.concepts)):
        links = own.attributes(f"#neighbours-{kind} a", "href")
        assert links == [f"#3/{row}" for row, *_ in rows]
        assert links
    row, count, _ = found.patches[0]
    card = own.find("#neighbours-patches a").first
    assert f"{count} of {K} patches" in card.text_content()
    card.click()
    own.asks(f"#3/{row}")
    assert own.text("#channel-name") == f"3/{row}"


def test_keys_step_through_the_channels(visit, single, order):
    own = visit(single.index).go("channels").go(f"3/{order[0]}")
    assert own.text("#channel-place") == f"1 of {CHANNELS}"
    assert own.find("#channel-before").get_attribute("aria-disabled") == "true"
    own.press("ArrowLeft")
    own.press("ArrowRight")
    own.asks(f"#3/{order[1]}")
    own.press("ArrowRight")
    own.asks(f"#3/{order[2]}")
    assert own.text("#channel-place") == f"3 of {CHANNELS}"
    own.press("ArrowLeft")
    own.asks(f"#3/{order[1]}")
    own.press("Shift+ArrowRight", "Control+ArrowRight")
    own.find("#channel-after").click()
    own.asks(f"#3/{order[2]}")
    own.go(f"3/{order[-1]}")
    assert own.find("#channel-after").get_attribute("href") is None


def test_keys_step_through_what_the_table_shows(visit, single):
    chosen = [channel for channel in range(CHANNELS) if channel % 10 == 4]
    own = visit(single.index).go("channels?flag=2&sort=channel&order=up")
    own.find("#channels tbody th a").first.click()
    own.asks(f"#3/{chosen[0]}")
    assert own.text("#channel-place") == f"1 of {len(chosen)}"
    for channel in chosen[1:]:
        own.press("ArrowRight")
        own.asks(f"#3/{channel}")


def test_a_channel_opened_by_its_address_is_followed_by_the_next_number(visit, single):
    own = visit(single.index).go("3/7")
    assert own.text("#channel-place") == f"8 of {CHANNELS}"
    own.press("ArrowRight")
    own.asks("#3/8")
    own.press("ArrowLeft")
    own.asks("#3/7")


def test_a_dead_channel_says_so(visit, single):
    own = visit(single.index).go(f"3/{DEAD}")
    assert own.texts("#channel-flags .flag") == ["dead"]
    assert own.texts("#channel-facts .fact b")[0] == "\u2013"
    assert own.find("#channel-charts svg").count() == chart(own, "Activations").count()
    assert own.texts("#neighbours-concepts") == ["none"]


def test_without_pictures_patches_have_their_ranks(visit, bare):
    own = visit(bare.index).go("3/7")
    assert own.texts(".patch") == [str(rank + 1) for rank in patches_of(bare, 7)["rank"]]
    own.find(".patch").first.hover()
    own.find("#hover dl").wait_for()
    assert own.find("#hover .whole").count() == 0
    assert not list(bare.index.parent.rglob("*.webp"))
    own.go("channels")
    assert own.find("#channels tbody tr").count() == 50
    own.go("overview")
    assert own.find("#overview-top a").count() == 8


def test_a_null_that_does_not_vary_is_told(visit, single, tmp_path):
    changed = shutil.copytree(single.index.parent, tmp_path / "report")
    script = changed / "data" / "l0" / "channels-000.js"
    script.write_text(script.read_text().replace('"varies":true', '"varies":false', 1))
    own = visit(changed / "index.html").go("3/0")
    first = own.find("#channel-charts figure").first
    assert "Every null draw gives" in first.text_content()
    assert first.locator("svg").count() == 0
    assert own.find("#channel-charts figure").nth(1).locator("svg").count() == 1
