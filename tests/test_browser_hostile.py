"""Names that are markup, scripts, formulas or long stand in the report as text, in a browser."""

import csv
import io
from urllib.parse import quote

import pytest
from browser import DESK, PHONE
from reports import ATTACKS, LAYER_NAME, RUN_NAME

CHANNELS = 8
LAYER = quote(LAYER_NAME)
PAGES = ("overview", "channels", f"{LAYER}/3", "experiments")
OWN = "[...document.querySelectorAll('body *')].filter(one => !one.closest('svg, script')).map(one => one.localName)"
HTML = {
    *("header", "main"),
    *(
        "a",
        "article",
        "b",
        "br",
        "button",
        "canvas",
        "code",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "em",
        "figcaption",
        "figure",
    ),
    *(
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "i",
        "img",
        "input",
        "label",
        "li",
        "nav",
        "noscript",
        "option",
        "p",
        "section",
    ),
    *("select", "span", "strong", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
"""Elements that the report is made of, besides its charts."""


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("where", PAGES, ids=["overview", "channels", "channel", "experiments"])
def test_nothing_runs_is_injected_or_overflows(visit, hostile, where, size):
    own = visit(hostile.index, size).go(where)
    assert own.find("#problem").is_hidden()
    assert own.width() <= size[0]
    for name in set(own.run(OWN)):
        assert name in HTML, name
    names = own.run("[...document.querySelectorAll('*')].flatMap(one => one.getAttributeNames())")
    assert not [name for name in names if name.startswith("on")]
    sources = own.attributes("script, img", "src")
    assert all(source.startswith(("assets/", "data/")) for source in sources)
    links = own.attributes("main a", "href")
    assert all(link is None or link.startswith(("#", "data/")) for link in links)


def test_names_stand_as_they_are(visit, hostile):
    table, [scores] = hostile.table, hostile.scores
    own = visit(hostile.index).go("overview")
    assert own.texts("#overview .warning")[: len(ATTACKS)] == list(ATTACKS)
    assert own.text("#overview details > summary b") == RUN_NAME
    assert ATTACKS[2] in own.text("h1 >> nth=0")
    assert ATTACKS[2] in own.page.title() or own.page.title().startswith("overview")
    own.go("channels")
    assert own.texts("#filter-layer option")[1:] == [LAYER_NAME]
    best = table.nlargest(1, "log_psi").iloc[0]
    names = zip(best["concepts"], best["cluster_sizes"], strict=True)
    assert own.text("#channels tbody tr >> nth=0 >> td.clusters > span") == " · ".join(
        f"{name} ({size})" for name, size in names
    )
    own.find("#channels tbody th a").first.click()
    own.until("document.querySelector('#channel').checkVisibility()")
    own.settled()
    channel = best["channel"]
    assert own.text("#channel-name") == f"{LAYER_NAME}/{channel}"
    own.reload()
    assert own.text("#channel-name") == f"{LAYER_NAME}/{channel}"
    for i, name in enumerate(best["concepts"]):
        assert own.find(".cluster").nth(i).locator(".meters").first.locator(".name").first.text_content() == name
    assert set(own.texts(".cluster .meters .name")) <= set(ATTACKS)
    patches = scores.patches.loc[scores.patches["channel"] == channel].sort_values(["cluster", "rank"])
    for place in range(0, 12, 2):
        own.find(".patch").nth(place).hover()
        said = dict(zip(own.texts("#hover dt"), own.texts("#hover dd"), strict=True))
        assert (said["image"], said["class"]) == tuple(patches[["image", "label"]].iloc[place])
        box = own.find("#hover").bounding_box()
        assert box["x"] + box["width"] <= DESK[0]
    assert set(scores.patches["label"]) == set(ATTACKS)


def test_notes_of_charts_are_text(visit, hostile):
    own = visit(hostile.index).go(f"{LAYER}/3")
    dots = own.find("#channel-charts g.mark-symbol.role-mark path")
    dots.first.evaluate("one => one.closest('figure').scrollIntoView({ block: 'center' })")
    seen = set()
    for i in range(0, dots.count(), 3):
        box = dots.nth(i).bounding_box()
        own.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        note = own.find("#vg-tooltip-element")
        own.page.wait_for_timeout(100)
        if not note.is_visible():
            continue
        seen.add(note.locator("tr").filter(has_text="class").locator("td.value").first.text_content())
        assert not note.locator("img, script, svg, a").count()
    assert len(seen) > 5
    assert all(any(name[:90] == attack[:90] for attack in ATTACKS) for name in seen)


def test_texts_of_experiments_are_text(visit, hostile):
    own = visit(hostile.index).go("experiments")
    said = own.text(".experiment .text")  # in which `...` is code
    for attack in ATTACKS:
        assert attack.replace("`", "") in said, attack
    assert own.find(".experiment .text").locator("img, a, script, svg").count() == 0
    assert own.find(".experiment img").count() == 1
    claims = own.texts(".experiment .scroll:not(.text) tbody td:first-child")
    assert claims
    assert all(LAYER_NAME in name for name in claims if "onerror" in name)


def test_formulas_are_quoted_where_rows_are_saved(visit, hostile):
    own = visit(hostile.index).go("channels?sort=channel&order=up")
    with own.page.expect_download() as download:
        own.find("#table-export").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_bytes().decode(), newline="")))
    assert [int(row["channel"]) for row in rows] == list(range(CHANNELS))
    for row, (_, truth) in zip(rows, hostile.table.iterrows(), strict=True):
        names = ";".join(truth["concepts"])
        assert row["concepts"] == (f"'{names}" if names.startswith("=") else names)
        assert (row["run"], row["layer"]) == (f"'{RUN_NAME}", LAYER_NAME)
    assert RUN_NAME.startswith("=")


def test_a_hostile_search_is_kept_and_found(visit, hostile):
    own = visit(hostile.index).go("channels")
    for words in ATTACKS:
        own.find("#filter-search").fill(words)
        own.until("words => new URLSearchParams(location.hash.split('?')[1]).get('search') === words", words)
        own.settled()
        wanted = words.lower().split()
        expected = sum(
            all(any(word in name.lower() for name in (*names, f"{LAYER_NAME}/{channel}")) for word in wanted)
            for channel, names in zip(hostile.table["channel"], hostile.table["concepts"], strict=True)
        )
        assert own.find("#channels tbody tr").count() == expected
        own.reload()
        assert own.find("#filter-search").input_value() == words
        assert own.find("#channels tbody tr").count() == expected


@pytest.mark.parametrize("asked", [quote(attack) for attack in ATTACKS[:6]] + [f"{quote(ATTACKS[2])}/5"])
def test_a_hostile_address_is_told_as_text(visit, hostile, asked):
    own = visit(hostile.index).go(asked)
    assert own.text("#problem").startswith("There is no ")
    assert own.find("#problem *").count() == 0
