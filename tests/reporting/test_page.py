"""The report in a real browser: what sliders and keys change, live Dice against the
package's, escaping, size.
"""

import dataclasses
import math
import re
import subprocess
import sys

import browser
import evaluated_workdir
import numpy as np
import pytest
from places import ROOT

from biedsnet_jax.reporting import record, report
from biedsnet_jax.scoring import metrics

# Each test drives a browser.
pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=hacked=1></script><script>hacked=1</script>&amp;"
browser_page = browser.browser_page
page_log = browser.page_log

PANELS = ("image", "truth", "prediction", "uncertainty", "difference")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes the report of two runs: a diffusion model, and a direct one of two classes.

    Returns its path, and what the two predicted.
    """
    root = tmp_path_factory.mktemp("runs")
    truths = [
        evaluated_workdir.write(root / "a", pictures=6),
        evaluated_workdir.write(
            root / "b",
            seed=1,
            classes=2,
            steps=0,
            samples=1,
            threshold=0.3337,
            row=HOSTILE,
            network=HOSTILE,
        ),
    ]
    report.run(str(root), str(root / "report.html"))
    return root / "report.html", truths


@pytest.fixture
def page(browser_page, written):
    browser_page.goto(written[0].as_uri())
    browser.until(browser_page, "document.getElementById('score').textContent")
    return browser_page


def pixels(page, *names):
    """Hashes what each canvas shows."""
    script = """names => names.map(name => {
      const canvas = document.getElementById(name);
      const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      return data.reduce((sum, value) => (sum * 31 + value) % 1000000007, canvas.width);
    })"""
    return dict(zip(names, page.evaluate(script, list(names))))


def changed(page, action, *names):
    """Names the canvases that look otherwise after `action`."""
    before = pixels(page, *names)
    action()
    page.wait_for_timeout(150)
    after = pixels(page, *names)
    return {name for name in names if before[name] != after[name]}


def slide(page, name, value):
    page.locator(f"#{name}").evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }", value
    )


def live_dice(page, level):
    slide(page, "threshold", level)
    browser.until(page, f"document.getElementById('score').dataset.level === '{level}'")
    return float(page.locator("#score").get_attribute("data-dice"))


def test_all_is_drawn_and_nothing_is_loaded_or_wrong(page, page_log):
    # Chromium warns once pixels are read back, which comes later.
    browser.assert_quiet(page_log)
    assert [
        text[:5]
        for kind, text in page_log
        if kind == "request" and not text.startswith("data:")
    ] == ["file:"]
    for panel in PANELS:
        shades = page.locator(f"#{panel}").evaluate(
            "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
        )
        assert shades > 20, panel
    assert page.locator("#strip button").count() == 6
    assert page.locator("svg").count() == 7
    assert len(set(pixels(page, *PANELS).values())) == 5


@pytest.mark.parametrize(("run", "klass"), [(0, 0), (1, 0), (1, 1)])
def test_live_dice_is_the_packages_at_every_threshold(page, written, run, klass):
    probability, truth = written[1][run]
    page.select_option("#which", index=run)
    if run:
        page.select_option("#class", index=klass)
    slices = page.evaluate("run => data.runs[run].slices.map(one => one.label)", run)
    assert len(slices) == 6
    for place in (0, 2, 5):
        slide(page, "slice", place)
        browser.until(
            page,
            "label => document.getElementById('score').textContent.startsWith(label)",
            slices[place],
        )
        i = int(re.search(r"slice (\d+)", slices[place]).group(1))
        # The threshold 0.3337 is level 67 exactly.
        own = 0.5 if run == 0 else 0.3337
        for level, threshold in (
            (1, 1 / 200),
            (40, 0.2),
            (round(200 * own), own),
            (150, 0.75),
            (200, 1.0),
        ):
            found = live_dice(page, level)
            pred = probability[i, ..., klass] > np.float32(threshold)
            expected = metrics.standard(pred=pred, truth=truth[i, ..., klass])["dice"]
            assert found == pytest.approx(expected, abs=1e-12, nan_ok=True), (
                slices[place],
                level,
            )
            shown = page.locator("#score").inner_text()
            expected_text = (
                "undefined"
                if math.isnan(expected)
                else f"Dice {expected:.4f} at threshold {level / 200:.3f}"
            )
            assert expected_text in shown


def test_at_the_runs_threshold_it_is_the_evaluations(page):
    text = page.locator("#score").inner_text()
    live, recorded = re.search(
        r"Dice ([\d.]+) at threshold 0.500.*The evaluation had Dice ([\d.]+) at 0.5",
        text,
    ).groups()
    assert live == recorded
    slide(page, "threshold", 190)
    page.click("#reset")
    browser.until(page, "document.getElementById('score').dataset.level === '100'")


def test_sliders_change_what_is_drawn_and_nothing_else(page):
    assert changed(page, lambda: slide(page, "threshold", 30), *PANELS) == {
        "prediction",
        "difference",
    }
    assert changed(page, lambda: slide(page, "opacity", 90), *PANELS) >= {
        "truth",
        "prediction",
        "uncertainty",
    }
    assert changed(
        page, lambda: page.select_option("#map", value="mutual"), *PANELS
    ) == {"uncertainty"}
    assert changed(page, lambda: slide(page, "slice", 3), *PANELS) == set(PANELS)
    assert changed(
        page, lambda: page.click("#strip li:nth-child(1) button"), *PANELS
    ) == set(PANELS)
    assert changed(page, lambda: page.select_option("#which", index=1), *PANELS) == set(
        PANELS
    )


def test_the_map_is_drawn_at_the_threshold(page):
    """At full opacity a pixel has the tint exactly where it exceeds the threshold."""
    slide(page, "opacity", 100)
    page.wait_for_timeout(150)
    tinted = page.evaluate("""async () => {
      const one = slice(), maps = await load(one);
      const context = by('prediction').getContext('2d');
      const drawn = context.getImageData(0, 0, one.width, one.height).data;
      const tinted = (i) => drawn[i * 4] === 230 && drawn[i * 4 + 2] === 0;
      return [...maps.level].every((level, i) => (level > 100) === tinted(i));
    }""")
    assert tinted


def test_denoising_goes_step_by_step_and_plays(page):
    steps = ("x_t", "x_0", "outlines")
    assert (
        page.locator("#step-score").inner_text().startswith("Step 4 of 4, t = 99: Dice")
    )
    assert changed(page, lambda: slide(page, "step", 0), *steps) >= {"x_t", "x_0"}
    assert "t = 999" in page.locator("#step-score").inner_text()
    assert changed(page, lambda: page.select_option("#traced", index=1), *steps) == set(
        steps
    )
    page.click("#play")
    browser.until(page, "document.getElementById('step-text').textContent === '4 of 4'")
    page.select_option("#which", index=1)
    browser.until(page, "document.getElementById('steps').hidden")
    assert page.locator("#no-steps").is_visible()


def test_the_last_step_is_the_mask_that_it_led_to(page):
    dice = page.evaluate("Number(document.getElementById('step-score').dataset.dice)")
    label = page.locator("#traced option").first.inner_text().split(" (")[0]
    place = page.evaluate(
        "label => data.runs[0].slices.findIndex(one => one.label === label)", label
    )
    slide(page, "slice", place)
    assert live_dice(page, 100) == pytest.approx(dice, abs=1e-12)


def test_keys_move_through_slices_thresholds_and_steps(page):
    def press(key, shows, selector="#slice-text"):
        page.keyboard.press(key)
        browser.until(
            page,
            "([s, t]) => document.querySelector(s).textContent === t",
            [selector, shows],
        )

    page.locator("#viewer").focus()
    press("ArrowRight", "2 of 6")
    press("ArrowLeft", "1 of 6")
    # The first slice is the end.
    press("ArrowLeft", "1 of 6")
    press("ArrowUp", "0.505", "#threshold-text")
    press("ArrowDown", "0.500", "#threshold-text")
    page.locator("#slice").focus()
    # A slider has keys of its own.
    press("End", "6 of 6")
    page.locator("#steps").focus()
    press("ArrowLeft", "3 of 4", "#step-text")
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_every_control_is_reached_by_tab(page):
    wanted = {
        "theme",
        "standard",
        "viewer",
        "which",
        "map",
        "slice",
        "threshold",
        "opacity",
        "reset",
        "steps",
        "step",
        "play",
    }
    seen = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id"))
    assert wanted <= seen


def test_light_and_dark_follow_the_system_until_told_otherwise(page):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.emulate_media(color_scheme="dark")
    assert paper() == "rgb(13, 17, 23)"
    page.click("#theme")
    assert paper() == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="light", media="print")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert paper() == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible()
    assert page.locator("#prediction").is_visible()


def test_one_convention_is_shown_at_a_time(page):
    def shown():
        return set(page.locator("main section:visible h3").all_inner_texts())

    for name in ("standard", "paper", "cost"):
        page.check(f"#{name}")
        titles = [title for title in shown() if title.startswith("Table")]
        words = {
            "standard": "standard|difference|small lesions",
            "paper": "paper",
            "cost": "cost",
        }[name]
        assert titles and all(re.search(words, title) for title in titles), titles


def test_what_is_not_known_is_grey_and_counts_nowhere(browser_page, tmp_path):
    names = ["lung", HOSTILE]
    folder = tmp_path / "run"
    evaluated_workdir.write(
        folder, classes=2, count=6, pictures=3, steps=1, class_names=names
    )
    dice = np.load(folder / record.NAME)["dice"]
    kept = record.load(folder, dice)
    known = np.random.default_rng(0).random(kept.truth.shape) < 0.7
    truth = kept.truth.astype(bool) & known
    replaced = dataclasses.replace(
        kept, known=known.astype(np.uint8), truth=truth.astype(np.uint8)
    )
    record.save(folder, replaced)
    report.run(str(folder), None)
    browser_page.goto((folder / "report.html").as_uri())
    browser.until(browser_page, "document.getElementById('score').textContent")
    options = browser_page.locator("#class option").all_text_contents()
    assert [name in text for name, text in zip(names, options)] == [True, True]
    number = int(re.search(r"slice (\d+)", browser_page.inner_text("#score")).group(1))
    shown = kept.slices.tolist().index(number)
    for k in range(2):
        browser_page.select_option("#class", index=k)
        is_known = known[shown, ..., k]
        for level in (40, 100):
            expected = metrics.standard(
                pred=kept.probability[shown, ..., k] > level,
                truth=truth[shown, ..., k],
                known=is_known,
            )["dice"]
            found = live_dice(browser_page, level)
            assert found == pytest.approx(expected, nan_ok=True)
        grey = browser.drawn(browser_page, "image")[~is_known]
        found = browser.drawn(browser_page, "truth")[~is_known]
        np.testing.assert_allclose(found, grey + (128 - grey) * 0.7, atol=1)


@pytest.fixture(scope="module")
def own_report(tmp_path_factory):
    """Writes the report of one run that draws its samples in one step."""
    folder = tmp_path_factory.mktemp("own") / "run"
    evaluated_workdir.write(folder, count=40, pictures=12, steps=1)
    report.run(str(folder), None)
    return folder / "report.html"


@pytest.fixture
def own_page(browser_page, own_report):
    browser_page.goto(own_report.as_uri())
    browser.until(browser_page, "document.getElementById('score').textContent")
    return browser_page


def test_a_report_of_ones_own_starts_with_the_verdict(own_page, page_log):
    browser.assert_quiet(page_log)
    headings = own_page.locator("main h2:visible").all_inner_texts()
    assert headings[:2] == ["Verdict", "Worst, median and best slices"]
    assert own_page.locator(".findings .figure").count() >= 6
    assert own_page.locator("#extremes figure").count() == 3
    assert own_page.locator("h1").inner_text() == "BIEDSNet on blobs"


def test_a_report_of_several_networks_starts_with_their_scores(page):
    assert page.locator("main h2:visible").first.inner_text() == "Scores"
    assert not page.locator("#verdict").is_visible()


def test_the_worst_the_median_and_the_best_open_below(own_page):
    places = []
    for figure in own_page.locator("#extremes figure").all():
        figure.locator("button").click()
        own_page.wait_for_timeout(100)
        label = figure.locator("figcaption").inner_text().split(". ")[1]
        assert own_page.locator("#score").inner_text().startswith(f"{label}, one of")
        places.append(int(own_page.locator("#slice").input_value()))
    assert places[0] == 0
    assert places == sorted(set(places))


def test_one_step_has_no_slider(own_page):
    assert not own_page.locator("#step").is_visible()
    assert not own_page.locator("#play").is_visible()
    assert own_page.locator("#x_0").is_visible()
    assert (
        own_page.locator("#step-score")
        .inner_text()
        .startswith("The only step, t = 999")
    )


def test_a_table_says_that_it_scrolls_where_it_does(own_page):
    def hints():
        script = "e => [e.scrollWidth > e.clientWidth, getComputedStyle(e, '::before').content]"
        tables = own_page.locator(".wide:visible").all()
        return [table.evaluate(script) for table in tables]

    for width in (1280, 360):
        own_page.set_viewport_size({"width": width, "height": 740})
        own_page.wait_for_timeout(200)
        found = hints()
        assert all(scrolls == ("Scrolls" in hint) for scrolls, hint in found)
    assert any(scrolls for scrolls, _ in found)


@pytest.mark.parametrize("width", [360, 390, 1920])
def test_the_verdict_fits_any_width(own_page, width):
    own_page.set_viewport_size({"width": width, "height": 740})
    own_page.wait_for_timeout(100)
    assert own_page.evaluate("document.documentElement.scrollWidth") <= width
    # The page is used from edge to edge.
    assert own_page.locator("main").bounding_box()["width"] > 0.9 * width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_a_verdict(own_page, scheme):
    own_page.emulate_media(color_scheme=scheme)
    browser.assert_accessible(own_page)


def test_a_phone_has_room_for_it(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#prediction").bounding_box()["width"] > 120
    # The names of rows are not broken letter by letter.
    assert (
        page.locator("section.standard th[scope=row]").first.bounding_box()["width"]
        > 120
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, scheme):
    page.emulate_media(color_scheme=scheme)
    for summary in page.locator("summary").all():
        summary.click()
    browser.assert_accessible(page)


def test_hostile_text_is_only_text(page, page_log):
    assert page.evaluate("typeof hacked") == "undefined"
    assert HOSTILE in page.locator("#which").inner_text()
    assert HOSTILE in page.locator("main").inner_text()
    assert page.locator("img").count() == 0
    browser.assert_quiet(page_log)


def test_an_earlier_workdir_has_a_report_that_says_how_to_get_pictures(
    tmp_path, browser_page, page_log
):
    evaluated_workdir.write(tmp_path / "run", steps=0)
    (tmp_path / "run" / "report_data.npz").unlink()
    report.run(str(tmp_path / "run"), None)
    browser_page.goto((tmp_path / "run" / "report.html").as_uri())
    assert (
        f"--mode=evaluate --workdir={tmp_path / 'run'}"
        in browser_page.locator("main").inner_text()
    )
    assert not browser_page.locator("#viewer").is_visible()
    assert browser_page.locator("svg").count() == 4
    browser.assert_quiet(page_log)
    browser.assert_accessible(browser_page)


def test_eight_full_size_runs_stay_below_five_megabytes_and_need_no_jax(tmp_path):
    for n in range(8):
        evaluated_workdir.write(
            tmp_path / "x" / f"seed{n}",
            seed=n,
            size=256,
            count=12,
            pictures=12,
            steps=6,
        )
    code = (
        "import sys; from biedsnet_jax.reporting import report; "
        "report.run(*sys.argv[1:]); sys.exit('jax' in sys.modules)"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "x"), str(tmp_path / "r.html")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "r.html").read_text()
    assert 200_000 < len(text.encode()) < 5_000_000
    # Each run has the worst, the median and the best slice.
    assert len(re.findall(r'"label":', text)) >= 8 * 3
    assert len(re.findall(r'"x_0":', text)) >= 8
    assert record.NAME in {path.name for path in (tmp_path / "x" / "seed0").iterdir()}
