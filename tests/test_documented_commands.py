"""Every command and Python example of the pages: run at toy size, or checked, as
documented_rules says.
"""

import shlex
import sys

import absl_flags
import documented
import documented_rules
import jax
import numpy as np
import pytest
from documented_workshop import Workshop
from places import ROOT

from biedsnet_jax.runtime import devices

COMMANDS = [
    command for page in documented.pages() for command in documented.commands(page)
]
# Those of extend.md are tried by test_extend, of python.md by test_python_page.
EXAMPLES = [
    page
    for page in documented.pages()
    if documented.examples(page) and page.name not in ("extend.md", "python.md")
]
FIRST = [
    said
    for i, said in enumerate(COMMANDS)
    if said.text not in [other.text for other in COMMANDS[:i]]
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def workshop(shared, monkeypatch, capsys):
    # quicker than eight
    one = devices.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(devices, "make_mesh", lambda *_, **fields: one)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    # config files import one another
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(shared.folder)
    shared.printed = capsys.readouterr
    yield shared
    absl_flags.forget()


def test_every_command_has_a_rule():
    without = [
        f"{place}: {text}"
        for place, text in COMMANDS
        if not documented_rules.rule_of(shlex.split(text))
    ]
    assert not without, (
        "write a rule in tests/helpers/documented_rules.py for\n" + "\n".join(without)
    )


def test_every_rule_has_a_command():
    used = {documented_rules.rule_of(shlex.split(said.text)) for said in COMMANDS}
    assert [rule.what for rule in documented_rules.RULES if rule not in used] == []


@pytest.mark.parametrize("said", FIRST, ids=[said.place for said in FIRST])
def test_command(said, workshop):
    words = shlex.split(said.text)
    page = (ROOT / said.place.split(":")[0]).read_text()
    documented_rules.rule_of(words).try_it(words, workshop, page)


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_python_examples(page, workshop):
    workshop.trained("runs/mine")
    names = {"array": np.random.default_rng(0).normal(size=(2, 40, 30, 1))}
    for example in documented.examples(page):
        exec(compile(example.text, example.place, "exec"), names)
    assert names["prediction"].label_map.shape == (3, 32, 32) and names[
        "labels"
    ].shape == (32, 32, 3)
