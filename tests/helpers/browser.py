"""A real headless Chromium for tests of pages.

A test module takes the fixtures by name:

    import browser

    browser_page, page_log = browser.browser_page, browser.page_log

Tests skip where Playwright (`pip install playwright`) or Chromium (`apt-get install
chromium`, or its path in the environment variable CHROMIUM) is missing.
"""

import functools
import os
import shutil
import time

import numpy as np
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Tests may run as root, and in a container.
_FLAGS = ("--no-sandbox", "--disable-dev-shm-usage")
_OWN = ("file:", "data:", "blob:", "about:")


def find_chromium() -> str | None:
    """Path of the browser: what CHROMIUM says, else the first that is installed."""
    installed = filter(None, map(shutil.which, _NAMES))
    return os.environ.get("CHROMIUM") or next(installed, None)


@functools.cache
def _browser():
    """Starts the one browser of all tests, which ends with the process."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install playwright"
    )
    if find_chromium() is None:
        pytest.skip(
            "no Chromium: apt-get install chromium, or give its path in CHROMIUM"
        )
    return (
        sync_api.sync_playwright()
        .start()
        .chromium.launch(executable_path=find_chromium(), args=_FLAGS)
    )


@pytest.fixture
def page_log():
    """(kind, text) of each request, console message and error of `browser_page`."""
    return []


@pytest.fixture
def browser_page(page_log):
    """A Playwright page of a fresh profile, 1280 by 800."""
    context = _browser().new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("request", lambda request: page_log.append(("request", request.url)))
    page.on("console", lambda message: page_log.append((message.type, message.text)))
    page.on("pageerror", lambda error: page_log.append(("error", str(error))))
    yield page
    context.close()


def until(page, script: str, argument=None) -> None:
    """Waits until a script is true.

    `page.wait_for_function` needs eval, which a page's policy may forbid.
    """
    deadline = time.monotonic() + 30
    while not page.evaluate(script, argument):
        assert time.monotonic() < deadline, f"never came true: {script}"
        page.wait_for_timeout(20)


def assert_quiet(page_log, allowed: str = "file:") -> None:
    """Checks that a page made no error, no warning and no request outside `allowed`.

    A request may begin with `allowed`, such as "http://127.0.0.1:8000/".
    """
    loud = [(kind, text) for kind, text in page_log if kind in ("error", "warning")]
    outside = [
        text
        for kind, text in page_log
        if kind == "request" and not text.startswith((allowed, *_OWN))
    ]
    assert loud == [] and outside == [], (loud, outside)


def assert_accessible(page) -> None:
    """Checks that axe-core finds nothing serious on a page; skips where it is missing."""
    why = "no axe: pip install axe-playwright-python"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=why)
    found = axe.Axe().run(page).response["violations"]
    bad = [one for one in found if one["impact"] in ("serious", "critical")]
    assert not bad, [
        (one["id"], [node["html"] for node in one["nodes"]][:3]) for one in bad
    ]


def drawn(page, name):
    """Returns the pixels "h w 3" of a canvas."""
    script = """c => {
      const pixels = c.getContext("2d").getImageData(0, 0, c.width, c.height);
      return [c.height, c.width, ...pixels.data];
    }"""
    height, width, *values = page.locator(f"#{name}").evaluate(script)
    return np.array(values).reshape(height, width, 4)[..., :3]
