"""requirements.txt, constraints.txt and pyproject.toml agree."""

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

# What a checkout's second command, the tests, needs at least.
TESTS = {"beartype", "hypothesis", "pytest", "pytest-xdist"}
# Extras of this project that a checkout has from the start.
OF_A_CHECKOUT = ("train", "tfds")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lines(name: str) -> list[str]:
    """The lines of a file of requirements that name one."""
    text = (ROOT / name).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_a_checkout_installs_the_core_two_extras_and_what_runs_tests():
    extras = project()["optional-dependencies"]
    expected = set(project()["dependencies"])
    for extra in OF_A_CHECKOUT:
        expected |= set(extras[extra])
    expected |= {line for line in extras["test"] if Requirement(line).name in TESTS}
    assert set(lines("requirements.txt")) == expected


def test_the_core_has_nothing_of_tests_or_of_single_uses():
    names = {
        canonicalize_name(Requirement(line).name) for line in project()["dependencies"]
    }
    for extra, brought in project()["optional-dependencies"].items():
        of_extra = {canonicalize_name(Requirement(line).name) for line in brought}
        # Those of jax itself, and `all`, which has extras of this project.
        assert names.isdisjoint(of_extra - {"jax", "biedsnet-jax"}), extra


def test_the_measured_set_fits_what_is_asked_for():
    pinned = dict(line.split("==") for line in lines("constraints.txt"))
    assert {name: canonicalize_name(name) for name in pinned} == {n: n for n in pinned}
    for line in lines("requirements.txt"):
        requirement = Requirement(line)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), line
