"""The report's other pages in a browser: overview, experiments, compare; colours, keys and addresses of all."""

from shutil import copytree

import numpy as np
import pytest
from browser import PHONE, TABLET, Visit
from reports import CHANNELS, DEAD, IMAGES
from scipy import stats

from psi_fast.details import open_details
from psi_fast.experiments.outcome import claim_cells

PAGES = ("overview", "channels", "3/7", "experiments", "compare")
SELECTORS = "a[href], button, input, select, summary"


def address(page):
    """Of a page in the report of two runs."""
    return f"first/{page}" if page == "3/7" else page


@pytest.fixture(scope="module")
def experiments(runs):
    return open_details(runs[0]).experiments


def test_the_overview_says_what_the_scores_are(visit, single):
    table = single.table
    own = visit(single.index).go()
    assert own.run("location.hash") == ""
    assert dict(zip(own.texts("#overview-facts span"), own.texts("#overview-facts b"), strict=True)) == {
        "channels": str(CHANNELS),
        "significant (q < .05)": str((table["q"] < 0.05).sum()),
        "above 95 % of random-patch channels": str((table["random_percentile"] > 95).sum()),
        "median PSI": f"{table['psi'].median():.3f}",
        "images": str(IMAGES),
    }
    best = table.nlargest(8, "log_psi")
    assert own.attributes("#overview-top a", "href") == [f"#3/{channel}" for channel in best["channel"]]
    assert own.find("#overview-top .strip > span").count() == best["k"].sum()
    manifest = single.scores[0].manifest
    settings = dict(own.rows(".pairs tr"))
    assert settings["draws"] == str(manifest["config"]["draws"])
    assert settings["torch"] == manifest["versions"]["torch"]
    assert settings["network"] == manifest["network"]


def test_the_overview_is_drawn(visit, single):
    table = single.table
    own = visit(single.index).go("overview")
    for name in ("log-psi", "log-odds", "layers", "flags", "seconds"):
        assert own.find(f"#chart-{name} svg g.role-mark path").count() > 0
        assert own.find(f"#chart-{name}").get_attribute("aria-label")
    assert own.find("#chart-components canvas").bounding_box()["height"] > 100
    bars = own.attributes("#chart-flags g.mark-rect.role-mark path", "aria-label")
    counted = {
        label.split("name: ")[1].split(";")[0]: int(label.split("channels: ")[1].split(";")[0]) for label in bars
    }
    flags = table["flags"].explode().value_counts()
    assert counted["dead"] == flags["dead"] == 1
    assert counted["unselective"] == flags["unselective"]
    assert counted["no flag"] == (table["flags"].map(len) == 0).sum()


def test_the_overview_shows_the_layer_that_is_chosen(visit, pair):
    own = visit(pair.index).go("overview")
    own.find("#overview-layer").select_option("1")
    best = pair.scores[1].table.nlargest(1, "log_psi")["channel"].item()
    own.until("best => document.querySelector('#overview-top a').getAttribute('href') === best", f"#second/3/{best}")
    own.until("document.querySelector('#chart-flags').ariaLabel.includes('second/3')")


def test_experiments_have_their_figures_and_claims(visit, single, experiments):
    own = visit(single.index).go("experiments")
    assert (
        [one.name for one in experiments] == ["patch-swap", "separation"] == own.texts(".experiment h2:first-of-type")
    )
    for i, one in enumerate(experiments):
        place = f"#experiment-e{i}"
        figure = own.find(f"{place} img")
        figure.scroll_into_view_if_needed()
        own.until("where => document.querySelector(where).naturalWidth > 0", f"{place} img")
        assert one.name in figure.get_attribute("alt")
        rows = own.rows(f"{place} .scroll:not(.text) tbody tr")
        assert rows == [[*claim_cells(claim), str(claim.count or ""), claim.how] for claim in one.claims]
        with own.page.expect_download() as download:
            own.find(f"{place} a[download]").click()
        assert download.value.path().read_bytes() == (one.folder / "table.csv").read_bytes()
    own.find("#experiments ul a").nth(1).click()
    own.asks("#experiments/e1")
    assert own.find("#experiment-e1 h2").first.bounding_box()["y"] < 900


def ranked(pair):
    """Channels with a score in both runs, and their ranks by falling PSI in each."""
    tables = [scores.table for scores in pair.scores]
    both = ~(np.isnan(tables[0]["log_psi"]) | np.isnan(tables[1]["log_psi"]))
    values = [table["log_psi"][both].to_numpy() for table in tables]
    return tables[0]["channel"][both].to_numpy(), values, [stats.rankdata(-one) for one in values]


def test_runs_are_compared(visit, pair):
    channels, values, ranks = ranked(pair)
    rho = stats.spearmanr(*values).statistic
    own = visit(pair.index).go("compare")
    assert own.text("#compare-note") == f"{CHANNELS - 1} channels with a score in both."
    assert own.text("#compare-rho") == f"Spearman's rank correlation of PSI: {rho:.3f}"
    assert -0.999 < rho < 0.999
    assert own.find("#chart-ranks canvas").bounding_box()["height"] > 100
    assert own.find("#chart-compare svg g.mark-tick path, #chart-compare svg g.mark-rect.role-mark path").count() >= 2
    moved = np.abs(ranks[0] - ranks[1])
    first = np.argsort(-moved, kind="stable")[:12]
    links, said = own.attributes("#compare-rows a", "href"), own.texts("#compare-rows a > .soft")
    assert sorted(moved[first]) == sorted(moved)[-12:]
    assert links == [f"#{run}/3/{channels[i]}" for i in first for run in ("first", "second")]
    assert said == [f"rank {ranks[side][i]:g}, PSI {np.exp(values[side][i]):.3f}" for i in first for side in (0, 1)]
    assert DEAD not in channels


def test_what_is_compared_stands_in_the_address(visit, pair):
    own = visit(pair.index).go("compare")
    own.find("#compare-a").select_option("1")
    own.asks("#compare?a=1&b=1")
    assert own.text("#compare-rho").endswith("1.000")
    own.reload()
    assert [own.find(f"#compare-{side}").input_value() for side in "ab"] == ["1", "1"]
    own.back()
    assert [own.find(f"#compare-{side}").input_value() for side in "ab"] == ["0", "1"]


def test_one_layer_has_nothing_to_be_compared_with(visit, single):
    own = visit(single.index).go()
    assert own.texts("nav a") == ["Overview", "Channels", "Experiments"]
    assert own.find("#compare").count() == 0


@pytest.mark.parametrize("size", [PHONE, TABLET], ids=["phone", "tablet"])
def test_pages_are_as_wide_as_the_screen(visit, pair, size):
    own = visit(pair.index, size)
    for page in PAGES:
        own.go(address(page))
        assert own.width() <= size[0], page
        cut = own.run(
            "limit => [...document.querySelectorAll('main *')].filter(one => one.offsetWidth && !one.closest('.scroll, .plot') &&"
            " one.getBoundingClientRect().right > limit + 1).map(one => one.outerHTML.slice(0, 100))",
            size[0],
        )
        assert not cut, page


LIGHT, DARK = "rgb(255, 255, 255)", "rgb(20, 23, 27)"


def chart_ink(own):
    """Colour of a chart's axis labels."""
    return own.run("document.querySelector('#chart-flags .role-axis-label text').getAttribute('fill')")


def await_ink(own, old):
    """Wait until the chart has another colour than the old one."""
    own.until(
        "old => (document.querySelector('#chart-flags .role-axis-label text')?.getAttribute('fill') ?? old) !== old",
        old,
    )


@pytest.mark.parametrize(("system", "paper"), [("light", LIGHT), ("dark", DARK)])
def test_colours_are_the_systems_until_one_chooses(visit, single, system, paper):
    other = {LIGHT: DARK, DARK: LIGHT}[paper]
    own = visit(single.index, color_scheme=system).go("overview")
    assert own.style("body", "backgroundColor") == paper
    ink, words = own.style("body", "color"), chart_ink(own)
    own.page.emulate_media(color_scheme={"light": "dark", "dark": "light"}[system])
    await_ink(own, words)
    assert own.style("body", "backgroundColor") == other
    own.page.emulate_media(color_scheme=system)
    own.until(
        "word => document.querySelector('#theme').textContent === word", {"light": "Dark", "dark": "Light"}[system]
    )
    button = own.find("#theme")
    button.click()
    await_ink(own, words)
    assert own.style("body", "backgroundColor") == other
    assert own.style("body", "color") != ink
    assert button.get_attribute("aria-label") == f"Change to {system} colours"
    own.reload()
    assert own.style("body", "backgroundColor") == other
    assert chart_ink(own) != words
    own.go("3/7")
    assert own.style("body", "backgroundColor") == other


def test_charts_out_of_sight_change_their_colours_too(visit, single):
    own = visit(single.index).go("overview")
    words = chart_ink(own)
    own.find("#theme").click()
    await_ink(own, words)
    own.go("channels")
    own.find("#theme").click()
    own.go("overview")
    assert chart_ink(own) == words


def test_clusters_have_the_colours_of_the_charts(visit, single):
    own = visit(single.index).go("3/7")
    for turn in range(2):
        edges = own.find(".cluster").evaluate_all("all => all.map(one => getComputedStyle(one).borderLeftColor)")
        dots = own.find("#channel-charts g.mark-symbol.role-mark path").evaluate_all(
            "all => all.map(one => getComputedStyle(one).fill)"
        )
        assert set(edges) == set(dots)
        assert len(set(edges)) == single.table["k"].iloc[7]
        if turn == 0:
            own.find("#theme").click()
            own.until("old => getComputedStyle(document.querySelector('.cluster')).borderLeftColor !== old", edges[0])
            own.until(
                "old => getComputedStyle(document.querySelector('#channel-charts g.mark-symbol.role-mark path')).fill !== old",
                dots[0],
            )


@pytest.mark.parametrize("where", PAGES)
def test_everything_can_be_reached_by_keys(visit, pair, where):
    own = visit(pair.index).go(address(where))
    wanted = own.run(
        f"[...document.querySelectorAll('{SELECTORS}')].filter(one => one.checkVisibility() && one.tabIndex >= 0)"
        ".map((one, i) => (one.dataset.probe = i))"
    )
    own.run("document.activeElement.blur()")
    met = []
    for _ in range(len(wanted) + 5):
        own.press("Tab")
        found = own.run("[document.activeElement.dataset.probe, getComputedStyle(document.activeElement).outlineStyle]")
        if found[0] is not None:
            assert found[1] != "none", "what has the focus is outlined"
            met.append(int(found[0]))
    assert set(met) == set(wanted)
    hidden = own.run(
        f"[...document.querySelectorAll('main [tabindex=\"-1\"]:is({SELECTORS})')].map(one => one.getAttribute('href'))"
    )
    reached = own.run(
        f"[...document.querySelectorAll('{SELECTORS}')].filter(one => one.tabIndex >= 0).map(one => one.getAttribute('href'))"
    )
    assert set(hidden) <= set(reached)


@pytest.mark.parametrize("where", PAGES)
def test_everything_has_a_name(visit, pair, where):
    own = visit(pair.index).go(address(where))
    nameless = own.run(
        f"[...document.querySelectorAll('{SELECTORS}, img, [role=img]')].filter(one => one.checkVisibility())"
        ".filter(one => !(one.getAttribute('aria-label') || one.alt || one.textContent.trim() ||"
        " one.querySelector('[aria-label]') || one.closest('label')?.textContent.trim()))"
        ".map(one => one.outerHTML.slice(0, 120))"
    )
    assert not nameless
    assert own.find("main h1:visible").count() == 1


def test_the_first_stop_of_the_keys_skips_to_the_content(visit, single):
    own = visit(single.index).go()
    own.press("Tab")
    assert own.run("document.activeElement.id") == "skip"
    own.press("Enter")
    assert own.run("document.activeElement.tagName") == "MAIN"
    assert own.run("location.hash") == ""
    own.press("Tab")
    assert own.run("document.activeElement.closest('#overview') !== null")


def test_the_search_is_a_key_away_where_it_takes_shift_too(visit, single):
    own = visit(single.index).go("overview")
    own.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '/', shiftKey: true, bubbles: true}))")
    own.until("document.activeElement.id === 'filter-search'")


def test_the_search_is_a_key_away(visit, single):
    own = visit(single.index).go("overview")
    own.press("/")
    own.until("document.activeElement.id === 'filter-search'")
    own.asks("#channels")
    own.press("d", "e", "e", "p")
    own.asks("#channels?search=deep")
    count = own.text("#table-count")
    own.press("/", "ArrowLeft", "ArrowRight")
    own.asks("#channels?search=deep%2F")
    own.press("Backspace")
    own.asks("#channels?search=deep")
    own.find("#table-export").focus()
    own.press("/")
    assert own.run("document.activeElement.id") == "filter-search"
    assert (own.run("location.hash"), own.text("#table-count")) == ("#channels?search=deep", count)
    own.back()
    assert own.find("#overview").is_visible()


@pytest.mark.parametrize(
    "asked", ["nowhere", "hover", "theme", "channel", "3/999", "3/-1", "4/7", "%E0%A4%A", "channels/7", "compare"]
)
def test_an_unknown_address_is_told(visit, single, asked):
    own = visit(single.index).go(asked)
    own.find("#problem").wait_for()
    assert own.text("#problem").startswith("There is no ")
    assert own.text("#problem").endswith(" in this report.")
    own.find("nav a").nth(1).click()
    own.asks("#channels")
    assert not own.find("#problem").is_visible()
    assert own.find("#channels tbody tr").count() == 50


@pytest.mark.parametrize(
    "query", ["sort=nothing", "layer=7", "flag=99", "k=x&random=y", "order=sideways", "search=%25"]
)
def test_a_strange_query_is_borne(visit, single, query):
    own = visit(single.index).go(f"channels?{query}")
    assert own.text("#table-count").endswith(f"of {CHANNELS} channels")


def test_a_report_that_lost_a_file_says_so(chromium, tmp_path, bare):
    folder = copytree(bare.index.parent, tmp_path / "copy")
    (folder / "data" / "l0" / "channels-000.js").unlink()
    own = Visit(chromium, folder / "index.html").go("3/7")
    assert own.text("#problem") == "data/l0/channels-000.js is missing; copy the whole report folder"
    assert {fault.split(":")[0] for fault in own.faults} == {"failed", "console error"}
    own.faults.clear()
    own.end()
