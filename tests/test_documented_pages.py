"""Fields, files and links that the pages name are there."""

import ast
import re
import shlex

import documented
from places import ROOT

from biedsnet_jax.config.fields import get_field
from configs import default

SPANS = [span for page in documented.pages() for span in documented.spans(page)]
REPOSITORY = (
    "tests",
    "benchmarks",
    "configs",
    "launch",
    "docs",
    "results",
    "biedsnet_jax",
    ".ci",
)


def test_fields_in_running_text_exist():
    """`sampler.steps=5`, `train.max_bad_steps`, `loss.*`; values are of the right type."""
    fields, checked = default.get_config(), 0
    for place, text in SPANS:
        name, equals, value = text.partition("=")
        name = name.removesuffix(".*")
        section = hasattr(fields.get(name.split(".")[0]), "keys")
        if section and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+(?<!\.py)(?<!\.json)", name):
            get_field(fields, name)
            if equals and "..." not in value:
                usual, (given,) = get_field(fields, name), shlex.split(value)
                assert isinstance(usual, str) or type(ast.literal_eval(given)) is type(
                    usual
                ), f"{place}: {text}"
            checked += 1
    assert checked > 30


def test_files_in_running_text_exist():
    missing = []
    for place, text in SPANS:
        first = text.split("/")[0]
        if "/" in text and first in REPOSITORY and re.fullmatch(r"[\w./*-]+", text):
            missing += [] if any(ROOT.glob(text.rstrip("/"))) else [f"{place}: {text}"]
        # that of an exported program
        elif re.fullmatch(r"[\w/]+\.(py|sh)", text) and text != "load.py":
            missing += [] if any(ROOT.rglob(text)) else [f"{place}: {text}"]
    assert not missing


def test_links_lead_somewhere():
    broken = []
    for page in documented.pages():
        for place, target in documented.links(page):
            path, _, anchor = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            there = other.is_relative_to(ROOT) and other.exists()
            if not there or (anchor and anchor not in documented.anchors(other)):
                broken.append(f"{place}: {target}")
    assert not broken


def test_every_page_is_in_the_front_pages_list():
    listed = {target for _, target in documented.links(ROOT / "README.md")}
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= listed
