"""What the pages name is there: commands, flags, configs, fields, files and links."""

import ast
import importlib.util
import re
import shlex

import absl_flags
import documented
import pytest
from documented_flags import check_flags
from places import ROOT

from biedsnet_jax.config.fields import get_field
from configs import default

PAGES = documented.pages()
SPANS = [span for page in PAGES for span in documented.spans(page)]
BLOCKS = [block for page in PAGES for block in documented.blocks(page)]
COMMANDS = [
    documented.Said(block.place, command)
    for block in BLOCKS
    for command in documented.commands(block)
]
OURS = re.compile(r"--\w|biedsnet \w|python (-m biedsnet|benchmarks/)|launch/|sbatch ")
# Mode export writes it.
WRITTEN = ["load.py"]
FOLDERS = "biedsnet_jax|benchmarks|configs|docs|launch|results|tests|.ci"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Paths of configs are those of a checkout; absl's flags end as they were."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["test"])
    yield
    absl_flags.forget()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist_and_take_what_they_are_given(page):
    name = str(page.relative_to(ROOT))
    said = [one for one in SPANS + COMMANDS if one.place.startswith(f"{name}:")]
    wrong = []
    for place, text in said:
        if OURS.match(text):
            try:
                check_flags(text)
            except Exception as error:
                wrong.append(f"{place}: {text}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "command",
    [
        "--no_such_flag=1",
        "--config.sampler.stepz=2",
        "--config.sampler.steps=none",
        "--config.sampler.steps=0",
        "--config=configs/none.py",
        "--config=configs/covid.py:no_such_variant",
        "python benchmarks/overfit.py --kills=2",
        "launch/table1.sh DIR OUT --kills=2",
        "biedsnet predict --kills=2",
        "biedsnet trian --workdir=runs/a",
    ],
)
def test_a_wrong_flag_is_found(command):
    with pytest.raises(Exception, match=r"kills|flag|step|none|variant|trian"):
        check_flags(command)


def test_modules_of_commands_exist():
    modules = {
        match.group(1)
        for _, text in SPANS + COMMANDS
        for match in re.finditer(r"python -m (\S+)", text)
    }
    assert "biedsnet_jax.main" in modules
    for module in modules:
        assert importlib.util.find_spec(module), module


def test_packages_to_install_are_known():
    """A package stands in pyproject.toml, in requirements.txt, or is torch."""
    known = (ROOT / "pyproject.toml").read_text() + (
        ROOT / "requirements.txt"
    ).read_text()
    for place, text in SPANS + COMMANDS:
        if text.startswith("pip install ") and "-r" not in text:
            for word in shlex.split(text)[2:]:
                name = re.match(r"[\w-]+", word).group()
                assert name == "torch" or name in known, f"{place}: {text}"


def test_fields_in_running_text_exist():
    """Fields such as `sampler.steps=5` and `loss.*` exist; values are of their type."""
    fields, checked = default.get_config(), 0
    for place, text in SPANS:
        name, equals, value = text.partition("=")
        name = name.removesuffix(".*")
        if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+(?<!\.py)(?<!\.json)", name):
            continue
        if not hasattr(fields.get(name.split(".")[0]), "keys"):
            continue
        usual = get_field(fields, name)
        if equals and "..." not in value and not isinstance(usual, str):
            given = ast.literal_eval(*shlex.split(value))
            assert type(given) is type(usual), f"{place}: {text}"
        checked += 1
    assert checked > 20


def test_files_exist():
    missing = []
    for place, text in SPANS + COMMANDS:
        # Values of flags are paths too.
        for word in re.split(r"[\s=]", text):
            path = word.split(":")[0].rstrip("/")
            ours = re.fullmatch(rf"({FOLDERS})/[\w./*-]+", path)
            if ours and not any(ROOT.glob(path)):
                missing.append(f"{place}: {path}")
    assert not missing


def test_scripts_named_without_their_folder_exist():
    names = {path.name for path in ROOT.rglob("*.py")} | set(WRITTEN)
    missing = [
        f"{place}: {text}"
        for place, text in SPANS
        if re.fullmatch(r"\w+\.py", text) and text not in names
    ]
    assert not missing


def test_a_page_says_that_its_scripts_need_a_checkout():
    scripts = ("launch/", "python benchmarks/")
    of_a_checkout = {
        command.place.partition(":")[0]
        for command in COMMANDS
        if any(script in command.text for script in scripts)
    }
    # Other pages are read in a checkout.
    for_users = {name for name in of_a_checkout if name.startswith(("README", "docs/"))}
    assert {"README.md", "docs/paper.md"} < for_users
    for name in for_users:
        targets = [link.text for link in documented.links(ROOT / name)]
        assert any("what-needs-a-checkout" in target for target in targets), name


def test_links_lead_somewhere():
    broken = []
    for page in PAGES:
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
