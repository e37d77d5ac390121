"""The table of channels in a browser: sorted, searched, filtered, paged and saved; what is chosen stands in the address."""

import csv
import io
import math

import numpy as np
import pytest
from reports import CHANNELS, CONCEPTS, DEAD

NUMBERS = "#channels tbody th a"
PAGE = 50
NONE = "\u2013"
"""What stands for a missing number."""
COLUMNS = {
    "channel": "channel",
    "PSI": "log_psi",
    "odds": "log_psi",
    "k": "k",
    "q": "q",
    "random %": "random_percentile",
    **{f"{part} z": f"{part}_z" for part in "SQD"},
}
"""Heads of the table, and what they sort by."""


def shown(visit):
    """Channels in the rows, once all rows are shown."""
    while visit.find("#table-more").is_visible():
        visit.find("#table-more").click()
    return [int(text.rpartition("/")[2]) for text in visit.texts(NUMBERS)]


def ordered(table, column, falling):
    """Channels as the table sorts them: those without a number last, equal ones by channel, to six digits."""
    values = [float(f"{value:.6g}") for value in table[column]]
    sign = -1 if falling else 1
    rows = sorted(
        range(len(table)), key=lambda i: (np.isnan(values[i]), 0 if np.isnan(values[i]) else sign * values[i], i)
    )
    return table["channel"].iloc[rows].tolist()


def by_psi(table, chosen):
    """The chosen channels, highest PSI first."""
    return [channel for channel in ordered(table, "log_psi", True) if chosen.iloc[channel]]


def test_rows_say_what_the_scores_are(visit, single):
    own = visit(single.index).go("channels")
    assert own.text("#table-count") == f"{CHANNELS} of {CHANNELS} channels"
    assert shown(own) == ordered(single.table, "log_psi", True)
    for channel in (0, 7, DEAD):
        row = single.table.iloc[channel]
        cells = own.find(
            "#channels tbody tr",
        ).filter(has=own.page.get_by_role("link", name=str(channel), exact=True))
        said = cells.locator("td").all_text_contents()
        odds = math.log10(row["psi"] / (1 - row["psi"])) if channel != DEAD else math.nan
        z = [f"{row[f'{part}_z']:.1f}" for part in "SQD"]
        expected = [f"{row['psi']:.4f}", f"{odds:.1f}", str(row["k"]), *z]
        assert said[:6] == ([NONE, NONE, "0", *3 * [NONE]] if channel == DEAD else expected)
        names = zip(row["concepts"], row["cluster_sizes"], strict=True)
        assert said[8] == " · ".join(f"{name} ({size})" for name, size in names)
        assert said[9] == "".join(row["flags"])
        assert cells.locator(".strip > span").count() == row["k"]


def test_further_rows_are_shown_when_asked_for(visit, single):
    own = visit(single.index).go("channels")
    assert own.find(NUMBERS).count() == PAGE
    assert own.text("#table-more") == f"Show {CHANNELS - PAGE} more of {CHANNELS - PAGE}"
    own.find("#table-more").click()
    own.find("#table-more").wait_for(state="hidden")
    assert own.find(NUMBERS).count() == CHANNELS


@pytest.mark.parametrize("head", COLUMNS)
def test_heads_sort(visit, single, head):
    own = visit(single.index).go("channels")
    button = own.page.get_by_role("button", name=head, exact=True)
    for turn in range(2):
        before = own.run("location.hash")
        button.click()
        own.until("before => location.hash !== before", before)
        own.settled()
        falling = (head in ("channel", "q", "PSI")) == bool(turn)  # PSI is sorted by already
        marked = own.find("#channels th[aria-sort]")
        assert marked.all_text_contents() == [head]
        assert marked.get_attribute("aria-sort") == ("descending" if falling else "ascending")
        assert own.find("#filter-order").input_value() == ("down" if falling else "up")
        assert shown(own) == ordered(single.table, COLUMNS[head], falling)
    assert np.isnan(single.table["log_psi"].iloc[DEAD])


def test_a_name_without_a_place_of_its_own_sorts_too(visit, single):
    own = visit(single.index).go("channels")
    own.find("#filter-sort").select_option("selectivity")
    own.asks("#channels?sort=selectivity")
    assert own.find("#channels th[aria-sort]").count() == 0
    assert shown(own) == ordered(single.table, "selectivity", True)


@pytest.mark.parametrize("words", ["deep", "LIGHT", "red deep", '"very"', "=green", "nothing is called this"])
def test_search_by_concept(visit, single, words):
    own = visit(single.index).go("channels")
    own.page.get_by_label("Concept, layer or channel").fill(words)
    own.until("location.hash.includes('search=')")
    own.settled()
    wanted = words.lower().split()
    chosen = single.table["concepts"].map(lambda names: all(any(word in name for name in names) for word in wanted))
    assert shown(own) == by_psi(single.table, chosen)
    assert 0 < chosen.sum() < CHANNELS or "nothing" in words
    assert own.text("#table-count") == f"{chosen.sum()} of {CHANNELS} channels"


def test_search_by_number_and_by_address(visit, single):
    own = visit(single.index).go("channels")
    for words, numbers in (("3/57", {57}), ("57", {57}), ("/5", {5, *range(50, 60)})):
        own.find("#filter-search").fill(words)
        own.until("words => new URLSearchParams(location.hash.split('?')[1]).get('search') === words", words)
        own.settled()
        assert set(shown(own)) == numbers


FILTERS = {
    "k": ("k", "3", lambda table: table["k"] == 3),
    "significant": ("significant", "1", lambda table: table["q"] < 0.05),
    "random": ("random", "60", lambda table: table["random_percentile"] >= 60),
    "flag": ("flag", "2", lambda table: table["flags"].map(lambda names: "unselective" in names)),
    "none": ("flag", "none", lambda table: table["flags"].map(len) == 0),
}


def choose(own, name, value):
    field = own.find(f"#filter-{name}")
    if name == "significant":
        field.check()
    elif name in ("k", "random"):
        field.fill(value)
        field.blur()
    else:
        field.select_option(value)
    own.until("wanted => location.hash.includes(wanted)", f"{name}={value}")
    own.settled()


@pytest.mark.parametrize("case", FILTERS)
def test_filters(visit, single, case):
    name, value, chosen = FILTERS[case]
    own = visit(single.index).go("channels")
    choose(own, name, value)
    expected = chosen(single.table)
    assert 0 < expected.sum() < CHANNELS
    assert shown(own) == by_psi(single.table, expected)


def test_filters_together_stay_in_the_address_until_they_are_cleared(visit, single):
    own = visit(single.index).go("channels")
    table = single.table
    for name, value in (("k", "2"), ("significant", "1"), ("random", "30")):
        choose(own, name, value)
    own.find("#filter-search").fill("light")
    own.until("location.hash.includes('search=light')")
    own.page.get_by_role("button", name="k", exact=True).click()
    own.until("location.hash.includes('sort=k')")
    own.settled()
    chosen = (table["k"] == 2) & (table["q"] < 0.05) & (table["random_percentile"] >= 30)
    chosen &= table["concepts"].map(lambda names: "light" in names)
    expected = [channel for channel in ordered(table, "k", True) if chosen.iloc[channel]]
    assert 1 < len(expected) < CHANNELS
    assert shown(own) == expected
    state = own.run("location.hash")
    own.reload()
    assert (shown(own), own.find("#filter-search").input_value()) == (expected, "light")
    own.find(NUMBERS).first.click()
    own.asks(f"#3/{expected[0]}")
    own.back()
    assert (own.run("location.hash"), shown(own)) == (state, expected)
    own.page.get_by_role("button", name="Clear").click()
    own.asks("#channels")
    assert shown(own) == ordered(table, "log_psi", True)
    assert own.find("#filter-search").input_value() == ""
    assert not own.find("#filter-significant").is_checked()
    own.back()
    assert (own.run("location.hash"), shown(own)) == (state, expected)


def test_layers_can_be_told_apart(visit, pair):
    own = visit(pair.index).go("channels")
    assert own.text("#table-count").startswith(f"{2 * CHANNELS} of")
    choose(own, "layer", "1")
    assert own.find("#filter-layer option:checked").text_content() == "second/3"
    assert {text.rpartition("/")[0] for text in own.texts(NUMBERS)} == {"second/3"}
    assert shown(own) == ordered(pair.scores[1].table, "log_psi", True)


def test_one_layer_is_not_asked_for(visit, single):
    own = visit(single.index).go("channels")
    assert not own.find("#filter-layer").is_visible()
    assert own.find("#filter-flag").is_visible()


def saved(own):
    """The rows that are saved as CSV."""
    with own.page.expect_download() as download:
        own.find("#table-export").click()
    text = download.value.path().read_bytes().decode()
    return download.value.suggested_filename, list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_rows_that_are_left_are_saved(visit, single):
    own = visit(single.index).go("channels?significant=1&sort=S_z")
    name, rows = saved(own)
    table = single.table.set_index("channel")
    expected = [channel for channel in ordered(single.table, "S_z", True) if table["q"][channel] < 0.05]
    assert name == "channels.csv"
    assert [int(row["channel"]) for row in rows] == expected == shown(own)
    for row in rows:
        truth = table.loc[int(row["channel"])]
        assert (row["run"], row["layer"]) == ("first", "3")
        for column in ("psi", "log_psi", "p", "q", "S_z", "Q_z", "D_z", "random_percentile", "max_activation"):
            assert float(row[column]) == pytest.approx(truth[column], rel=1e-5)
        assert row["cluster_sizes"] == ";".join(map(str, truth["cluster_sizes"]))
        assert row["flags"] == ";".join(truth["flags"])
        names = ";".join(truth["concepts"])
        assert row["concepts"] == (f"'{names}" if names.startswith("=") else names)
    firsts = {table["concepts"][channel][0] for channel in expected}
    assert firsts >= {CONCEPTS[1], CONCEPTS[2]}, "some begin with = and some hold a comma and quotes"


def test_a_channel_without_a_score_is_saved_with_empty_cells(visit, single):
    own = visit(single.index).go("channels?flag=0")
    [row] = saved(own)[1]
    assert (row["channel"], row["psi"], row["k"], row["concepts"], row["flags"]) == (str(DEAD), "", "0", "", "dead")


def test_the_way_back_leads_to_the_row_that_was_left(visit, single):
    own = visit(single.index).go("channels")
    own.find("#table-more").click()
    last = own.find(NUMBERS).nth(CHANNELS - 2)
    last.scroll_into_view_if_needed()
    left = own.run("window.scrollY")
    last.click()
    own.find("#channel-name").wait_for()
    assert own.run("window.scrollY") == 0
    assert own.run("document.activeElement.id") == "channel-name"
    own.page.go_back()
    own.find("#channels").wait_for()
    assert own.find(NUMBERS).count() == CHANNELS
    own.until("left => Math.abs(window.scrollY - left) < 60", left)
