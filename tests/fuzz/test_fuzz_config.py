"""Any value of any field is refused in one line, or it can be run.

Fields come from flags, from Python and from a workdir's config.json. A config can be run
when a workdir keeps it, and segmenter, optimizer and data can be made of it.
"""

import sys

import absl_flags
import jax
import pytest
from absl import flags
from damage import damaged, tried
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

from biedsnet_jax import main
from biedsnet_jax.config import build_data, build_model, run_config
from biedsnet_jax.config.build_optimizer import make_optimizer
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import flat, get_field
from biedsnet_jax.data import splits
from biedsnet_jax.networks import NETWORKS
from configs import phantom

BASE = phantom.get_config()
FIELDS = sorted(flat(BASE))
SAVED = BASE.to_json_best_effort().encode()
# Paths are the user's to choose, and "tfds" would look for real sets.
CHOSEN = [
    name
    for name in FIELDS
    if not name.startswith(
        ("compile_cache", "data.cache_dir", "data.tfds", "data.root")
    )
]

NUMBERS = (
    st.integers(-2, 20)
    | st.sampled_from([2**31, 2**63, 10**30, 0.5, 1e-300, 1e300])
    | st.floats()
    | st.booleans()
)
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["", "none", "auto", "(1,", "1e3", "True", "medsegdiff", "unet", "tfds"]
)
VALUES = (
    NUMBERS
    | TEXTS
    | st.none()
    | st.lists(NUMBERS | TEXTS, max_size=5).map(tuple)
    | st.just({"a": 1})
)


@pytest.fixture
def absl_as_before(monkeypatch):
    # Config files import one another.
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.chdir(ROOT)
    yield
    absl_flags.forget()


def run_of(cfg):
    """What a mode makes of a config before it compiles."""
    check_config(cfg)
    build_model.build(cfg)
    make_optimizer(cfg.train)
    build_data.make_prepare(cfg)
    if cfg.data.source == "phantom" and cfg.data.phantom.n_cases < 1000:
        build_data.open_data(cfg)
    return cfg


def parsed(argv):
    main.parse_flags(argv)
    return run_of(flags.FLAGS.config)


@pytest.mark.usefixtures("absl_as_before")
def test_flags(place):
    @given(
        name=st.sampled_from(CHOSEN) | st.text(max_size=10),
        value=VALUES.map(str) | st.text(max_size=10),
        more=st.sampled_from(
            [
                [],
                [],
                ["--mode=predict"],
                ["--repeats=x"],
                ["-"],
                ["--config"],
                ["--noconfig.seed"],
            ]
        ),
    )
    def check(name, value, more):
        absl_flags.forget()
        argv = ["biedsnet_jax", "--config=configs/phantom.py"]
        argv += [f"--config.{name}={value}", *more, f"--workdir={place}/run"]
        cfg = tried(lambda: parsed(argv), inside=place)
        assert cfg is None or set(flat(cfg)) == set(FIELDS)

    check()


def test_values(place):
    @given(st.dictionaries(st.sampled_from(CHOSEN), VALUES, min_size=1, max_size=3))
    def check(changes):
        cfg = phantom.get_config()
        for name, value in changes.items():
            above, _, last = name.rpartition(".")
            section = get_field(cfg, above) if above else cfg
            try:
                with section.ignore_type():
                    section[last] = value
            except TypeError:
                # ml_collections takes no section in the place of a value.
                return
        if tried(lambda: run_of(cfg), inside=place):
            run_config.save(cfg, place / "config.json")
            saved = run_config.load(place)
            run_config.check_trained(saved, place)
            assert set(flat(saved)) == set(FIELDS)
            (place / "config.json").unlink()

    check()


def variables_of(cfg):
    return build_model.init_variables(build_model.build(run_of(cfg)), cfg)


@pytest.mark.slow
def test_fields_of_networks(place):
    sizes = st.integers(-1, 24)
    values = (
        sizes
        | st.booleans()
        | st.sampled_from([0.0, 0.5, 1.5])
        | st.lists(sizes, max_size=5).map(tuple)
    )

    @given(data=st.data(), network=st.sampled_from(sorted(NETWORKS)))
    def check(data, network):
        cfg = phantom.get_config(network)
        cfg.data.size = 32
        fields = cfg.networks[network]
        names = st.sampled_from(sorted(fields))
        changes = st.dictionaries(names, values, min_size=1, max_size=2)
        with fields.ignore_type():
            fields.update(data.draw(changes))
        shapes = tried(lambda: jax.eval_shape(lambda: variables_of(cfg)), inside=place)
        assert all(leaf.size for leaf in jax.tree.leaves(shapes))

    check()


def test_a_damaged_config_of_a_workdir(place):
    @given(damaged(SAVED))
    def check(text):
        (place / "config.json").write_bytes(text)
        cfg = tried(lambda: run_of(run_config.load(place)), inside=place)
        assert cfg is None or set(flat(cfg)) == set(FIELDS)

    check()


def test_splits(place):
    names = st.lists(st.sampled_from("abcde"), max_size=3)

    @given(
        cases=st.lists(st.sampled_from("abcdef"), max_size=12),
        fractions=st.tuples(*[st.floats() | st.sampled_from([0.5, 0.25])] * 3),
        folds=st.integers(-1, 7),
        fold=st.integers(-2, 7),
        sides=st.tuples(names, names, names),
    )
    def check(cases, fractions, folds, fold, sides):
        train, val, test = sides
        for make in (
            lambda: splits.by_case(cases, fractions=fractions),
            lambda: splits.k_fold(cases, folds, fold),
            lambda: splits.named(cases, train=train, val=val, test=test),
        ):
            made = tried(make, inside=place)
            if made is not None:
                assert all(made.values())
                splits.check_disjoint(cases, made)

    check()
