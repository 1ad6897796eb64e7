"""Tests the page of mode serve in a real browser: drop, scrub, threshold, downloads,
keys, refusals and tokens.
"""

import io
import shutil

import browser
import nibabel as nib
import numpy as np
import pytest
import rules
from bright_model import SIZE, in_place, served, write_workdir
from PIL import Image

pytest.importorskip("starlette", reason="no starlette: pip install starlette uvicorn")
pytest.importorskip("uvicorn", reason="no uvicorn: pip install uvicorn")

from biedsnet_jax.config import run_config
from biedsnet_jax.prediction import predict
from biedsnet_jax.serving.limits import Limits

browser_page, page_log = browser.browser_page, browser.page_log
# Each test drives a browser.
pytestmark = pytest.mark.slow

PANELS = ("image", "mask", "samples", "uncertainty")
# Name of a file that a page must not take for HTML.
NAME = "<img src=x onerror=hacked=1> ünï.nii.gz"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    with in_place():
        yield write_workdir(tmp_path_factory.mktemp("runs") / "bright")


@pytest.fixture(scope="module")
def url(workdir, tmp_path_factory):
    with served(workdir, tmp_path_factory.mktemp("tmp"), Limits(upload=2**20)) as url:
        yield url


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A volume of 6 slices, each with a block of its own.

    They have the network's size, so that probabilities are not resized.
    """
    voxels = np.zeros((SIZE, SIZE, 6), np.int16)
    for z in range(6):
        voxels[2 : 5 + z, 3:10, z] = 900
    path = tmp_path_factory.mktemp("scan") / NAME
    # In canonical order, except that x and y are exchanged.
    nib.Nifti1Image(voxels, np.diag([-0.5, -1, 3, 1])).to_filename(path)
    return path


@pytest.fixture(scope="module")
def predicted(workdir, scan, tmp_path_factory):
    """The output folder of mode predict for the volume."""
    folder = tmp_path_factory.mktemp("masks")
    predict.run(run_config.load(workdir), str(workdir), str(scan), str(folder))
    return folder


@pytest.fixture
def page(browser_page, url, scan):
    """A page on which the volume is segmented."""
    browser_page.goto(url)
    browser_page.set_input_files("#file", scan)
    browser.until(browser_page, "document.getElementById('score').dataset.slice")
    return browser_page


def changed(page, action, *names):
    """Returns the canvases of `names` that `action` changes."""
    before = {name: browser.drawn(page, name) for name in names}
    action()
    page.wait_for_timeout(150)
    return {
        name
        for name in names
        if not np.array_equal(before[name], browser.drawn(page, name))
    }


def slide(page, name, value):
    page.locator(f"#{name}").evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }", value
    )
    key = {"threshold": "level"}.get(name, name)
    if key in ("slice", "level"):
        browser.until(
            page, f"document.getElementById('score').dataset.{key} === '{value}'"
        )


def refusal(page, says):
    browser.until(
        page,
        "says => document.getElementById('refusal').textContent.includes(says)",
        says,
    )
    assert not page.locator("#results").is_visible()
    return page.locator("#refusal").inner_text()


def test_a_scan_is_drawn_and_nothing_is_loaded_or_wrong(page, page_log, url):
    browser.assert_quiet(page_log, url)
    assert page.locator("#name").inner_text() == NAME
    assert page.evaluate("typeof hacked") == "undefined"
    for panel in PANELS:
        assert len(np.unique(browser.drawn(page, panel).reshape(-1, 3), axis=0)) > 1, (
            panel
        )
        box = page.locator(f"#{panel}").bounding_box()
        # Pixels are 0.5 mm by 1 mm.
        assert box["width"] / box["height"] == pytest.approx(0.5, abs=0.02)
    assert page.locator("#slice-text").inner_text() == "3 of 6"
    assert page.locator("#threshold-text").inner_text() == "0.5"
    cells = dict(
        zip(
            page.locator("#columns th").all_inner_texts(),
            page.locator("#rows td").all_inner_texts(),
        )
    )
    assert int(cells["pixels"]) == sum((3 + z) * 7 for z in range(6))
    assert cells["class"] == "1"


def test_downloads_are_what_mode_predict_writes(page, predicted):
    for link, name in (
        ("#save-mask", "_mask.nii.gz"),
        ("#save-summary", "_summary.csv"),
    ):
        with page.expect_download() as download:
            page.click(link)
        assert download.value.suggested_filename.endswith(f"ünï{name}")
        content = download.value.path().read_bytes()
        if link == "#save-mask":
            assert content == next(predicted.glob("*_mask.nii.gz")).read_bytes()
        else:
            written = (predicted / "summary.csv").read_text().splitlines()
            served_lines = content.decode().splitlines()
            assert served_lines[0] == written[0]
            assert len(served_lines) == 2
            assert served_lines[1].split(",")[1:10] == written[1].split(",")[1:10]


@pytest.mark.parametrize("level", [0, 20, 35, 100, 165, 175, 200])
def test_the_outline_is_that_of_the_probability_at_any_threshold(
    page, predicted, level
):
    p = nib.load(next(predicted.glob("*_probability.nii.gz"))).get_fdata()
    slide(page, "opacity", 100)
    for z in (1, 4):
        slide(page, "slice", z)
        slide(page, "threshold", level)
        tinted = (browser.drawn(page, "mask") == (230, 159, 0)).all(axis=-1)
        above = level / 200 < p[..., z].T
        # The file has steps of 1/65535.
        sure = np.abs(p[..., z].T - level / 200) > 1e-5
        np.testing.assert_array_equal(tinted[sure], above[sure])
        assert f": {tinted.sum()} pixels above" in page.locator("#score").inner_text()


def test_a_post_processed_mask_is_drawn_as_it_is_written(
    browser_page, workdir, tmp_path
):
    voxels = np.zeros((SIZE, SIZE, 2), np.int16)
    voxels[2:6, 3:10] = 900
    voxels[12, 12, 1] = 900
    nib.Nifti1Image(voxels, np.diag([-1, -1, 3, 1])).to_filename(tmp_path / "a.nii.gz")
    own = shutil.copytree(workdir, tmp_path / "run")
    rules.write(own, run_config.load(own), smallest=(4.0,), unit="mm3")
    with served(own, tmp_path, Limits(upload=2**20)) as url:
        page = browser_page
        page.goto(url)
        page.set_input_files("#file", tmp_path / "a.nii.gz")
        browser.until(page, "document.getElementById('score').dataset.slice")
        slide(page, "slice", 1)
        # The voxel of 3 mm3 is not in the mask, but above any threshold.
        assert ": 28 pixels in" in page.locator("#score").inner_text()
        assert not page.locator("#of-file").is_visible()
        slide(page, "threshold", 99)
        assert ": 29 pixels above 0.495, 28 in" in (page.locator("#score").inner_text())
        assert page.locator("#of-file").is_visible()


def test_sliders_change_what_is_drawn_and_nothing_else(page):
    def changes(action):
        return changed(page, action, *PANELS)

    assert changes(lambda: slide(page, "threshold", 170)) == {"mask", "samples"}
    assert page.locator("#of-file").is_visible()
    assert changes(lambda: page.click("#reset")) == {"mask", "samples"}
    assert not page.locator("#of-file").is_visible()
    assert changes(lambda: slide(page, "opacity", 90)) == {"mask", "uncertainty"}
    assert changes(lambda: page.select_option("#map", index=2)) == {"uncertainty"}
    assert page.locator("#most").inner_text() == "0.25"
    assert changes(lambda: page.select_option("#sample", index=1)) == {"samples"}
    slide(page, "threshold", 170)
    assert changes(lambda: page.select_option("#sample", index=2)) == {"samples"}
    assert changes(lambda: slide(page, "slice", 5)) == set(PANELS)


def test_keys_move_through_slices_and_thresholds(page):
    def press(key, shows, selector="#slice-text"):
        page.keyboard.press(key)
        browser.until(
            page,
            "([s, t]) => document.querySelector(s).textContent === t",
            [selector, shows],
        )

    assert page.evaluate("document.activeElement.id") == "viewer"
    press("ArrowRight", "4 of 6")
    press("ArrowLeft", "3 of 6")
    press("Home", "1 of 6")
    # There is none before the first.
    press("ArrowLeft", "1 of 6")
    press("PageDown", "6 of 6")
    press("ArrowUp", "0.505", "#threshold-text")
    press("ArrowDown", "0.5", "#threshold-text")
    press("ArrowDown", "0.495", "#threshold-text")
    page.locator("#slice").focus()
    # A slider has keys of its own.
    press("ArrowLeft", "5 of 6")
    seen = set()
    page.locator("#theme").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id"))
    downloads = {"file", "save-mask", "save-summary", "remove"}
    assert downloads | {"viewer", "slice", "threshold", "opacity", "sample"} <= seen


def test_a_picture_has_a_png_and_one_slice(browser_page, url):
    out = io.BytesIO()
    Image.fromarray(np.pad(np.full((8, 6), 200, np.uint8), ((4, 12), (3, 31)))).save(
        out, "PNG"
    )
    browser_page.goto(url)
    browser_page.set_input_files(
        "#file",
        {"name": "photo.png", "mimeType": "image/png", "buffer": out.getvalue()},
    )
    browser.until(browser_page, "document.getElementById('score').dataset.slice")
    assert not browser_page.locator("#slice").is_visible()
    assert browser.drawn(browser_page, "image").shape == (24, 40, 3)
    with browser_page.expect_download() as download:
        browser_page.click("#save-mask")
    assert download.value.suggested_filename == "photo_mask.png"
    mask = np.asarray(Image.open(download.value.path()))
    slide(browser_page, "opacity", 100)
    browser_page.wait_for_timeout(150)
    np.testing.assert_array_equal(
        (browser.drawn(browser_page, "mask") == (230, 159, 0)).all(axis=-1), mask == 255
    )


def test_a_dropped_file_is_taken_and_a_second_one_takes_its_place(page, url):
    first = page.evaluate("state.job")
    out = io.BytesIO()
    Image.fromarray(np.eye(20, dtype=np.uint8) * 200).save(out, "PNG")
    page.evaluate(
        """bytes => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png"));
          const drop = { dataTransfer: transfer, bubbles: true, cancelable: true };
          document.body.dispatchEvent(new DragEvent("drop", drop));
        }""",
        list(out.getvalue()),
    )
    browser.until(page, "state.facts && state.facts.mask === 'mask.png'")
    assert page.locator("#name").inner_text() == "dropped.png"
    assert status_of(page, first) == 404


def status_of(page, job):
    """Asks the server for a job; returns the status of its answer."""
    return page.evaluate("id => fetch('jobs/' + id).then(answer => answer.status)", job)


def test_a_class_has_its_name_and_the_name_is_only_text(browser_page, tmp_path, scan):
    name = "<b onclick=hacked=1>lesion</b> &amp;"
    with in_place():
        run = write_workdir(tmp_path / "run", class_names=(name,))
        with served(run, tmp_path, Limits(upload=2**20)) as url:
            browser_page.goto(url)
            browser_page.set_input_files("#file", scan)
            ready = "document.getElementById('score').dataset.slice"
            browser.until(browser_page, ready)
            options = browser_page.locator("#class option").all_text_contents()
    assert options == [f"1, {name}"]
    assert browser_page.locator("#class b").count() == 0


def test_removing_takes_it_from_the_server(page):
    job = page.evaluate("state.job")
    page.click("#remove")
    removed = "document.getElementById('status').textContent.includes('Removed')"
    browser.until(page, removed)
    assert not page.locator("#results").is_visible()
    assert status_of(page, job) == 404


def test_refusals_are_shown_and_the_next_file_is_taken(
    browser_page, url, scan, page_log
):
    page = browser_page
    page.goto(url)
    page.set_input_files(
        "#file", {"name": "a<b>.nii.gz", "mimeType": "x/y", "buffer": b"nothing"}
    )
    message = refusal(page, "scan.nii.gz")
    assert message.startswith("a<b>.nii.gz: ")
    assert "/" not in message
    page.set_input_files(
        "#file", {"name": "big.png", "mimeType": "x/y", "buffer": bytes(2**20 + 1)}
    )
    assert "1 MiB" in refusal(page, "big.png")
    page.set_input_files(
        "#file", {"name": "letter.pdf", "mimeType": "x/y", "buffer": b"%PDF-1.7"}
    )
    assert "Give a PNG" in refusal(page, "letter.pdf")
    page.set_input_files("#file", scan)
    browser.until(page, "document.getElementById('score').dataset.slice")
    assert not page.locator("#refusal").is_visible()
    browser.assert_quiet(page_log, url)
    browser.assert_accessible(page)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_finds_nothing_serious_and_a_phone_has_room(page, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 740})
    slide(page, "threshold", 60)
    browser.assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#mask").bounding_box()["width"] > 120
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)"
    )
    page.click("#theme")
    assert page.evaluate(paper) == (
        "rgb(13, 17, 23)" if scheme == "light" else "rgb(255, 255, 255)"
    )


def test_with_a_token_the_page_works_and_its_script_does_not_see_it(
    browser_page, workdir, scan, tmp_path
):
    with served(workdir, tmp_path, Limits(), token="t0ken") as url:
        browser_page.goto(url.split("?")[0])
        assert "token" in browser_page.locator("body").inner_text()
        browser_page.goto(url)
        assert browser_page.url == url.split("?")[0]
        browser_page.set_input_files("#file", scan)
        browser.until(browser_page, "document.getElementById('score').dataset.slice")
        assert browser_page.evaluate("document.cookie") == ""
    assert list(tmp_path.iterdir()) == []
