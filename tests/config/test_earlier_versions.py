"""Workdirs of earlier versions: golden/first_config.json is one's config.json, written
before any field was added.

A fork adds fields too: a copy of the project with a longer configs/default.py goes on
with a workdir made before.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict
from places import GOLDEN, ROOT
from refusals import refused

from biedsnet_jax.benchmarking import baseline
from biedsnet_jax.config import earlier_versions, known_fields, run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import flat, get_field, set_field
from configs import default, phantom

FIRST = GOLDEN / "first_config.json"


def names(fields, prefix=""):
    for name, value in fields.items():
        yield from (
            names(value, f"{prefix}{name}.")
            if hasattr(value, "items")
            else [prefix + name]
        )


def plain(value):
    return value.to_dict() if hasattr(value, "to_dict") else value


def old_workdir(folder, without=()):
    """A workdir whose config.json is the first version's, or today's `without` some
    fields.
    """
    fields = (
        json.loads(FIRST.read_text())
        if not without
        else json.loads(phantom.get_config().to_json_best_effort())
    )
    for name in without:
        *sections, field = name.split(".")
        section = fields
        for part in sections:
            section = section[part]
        del section[field]
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_the_first_versions_workdir_has_every_field_of_today(tmp_path):
    loaded = earlier_versions.complete(ConfigDict(json.loads(FIRST.read_text())))
    missing = set(names(default.get_config())) - set(names(loaded))
    assert not missing, "give each a line in biedsnet_jax/config/earlier_versions.py"


def test_the_first_versions_workdir_goes_on_without_a_word(tmp_path, capsys):
    loaded = run_config.load(old_workdir(tmp_path))
    check_config(loaded)
    run_config.check_same_run(loaded, tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", earlier_versions.ADDED)
def test_todays_config_goes_on_with_a_workdir_that_lacks_a_later_field(tmp_path, name):
    workdir = old_workdir(tmp_path, without=[name])
    assert plain(get_field(run_config.load(workdir), name)) == plain(
        earlier_versions.ADDED[name]
    )
    same = phantom.get_config()
    same.update_from_flattened_dict({name: earlier_versions.ADDED[name]})
    run_config.check_same_run(same, workdir)


def test_a_value_that_is_there_stays_and_a_missing_section_is_not_made_up():
    c = default.get_config().unlock()
    c.diffusion.self_condition = True
    assert earlier_versions.complete(c).diffusion.self_condition is True
    del c.diffusion
    assert "diffusion" not in earlier_versions.complete(c)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {
                "sampler__start": "noise",
                "sampler__start_fraction": 0.5,
                "sampler__start_run": 8,
            },
            "",
        ),
        (
            {"sampler__start": "direct"},
            "has sampler.start='direct', which configs/default.py does not have.",
        ),
        ({"sampler__start_run": 4}, "has sampler.start_run=4,"),
        ({"sampler__start": "slice", "sampler__start_run": 4}, "sampler.start='slice'"),
    ],
)
def test_a_warm_start_of_an_earlier_version_is_left_out_and_said_where_it_was_used(
    tmp_path, capsys, fields, said
):
    run_config.save(
        with_fields(phantom.get_config(), **fields), tmp_path / "config.json"
    )
    loaded = run_config.load(tmp_path)
    assert set(loaded.sampler) == {"method", "steps", "eta", "spacing", "ensemble"}
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == bool(said)


def test_sections_that_are_filled_in_are_each_configs_own():
    one, other = ConfigDict(), ConfigDict()
    earlier_versions.complete(one).parallel.fsdp = 4
    assert earlier_versions.complete(other).parallel.fsdp == 1


# --- a fork that added or took away fields ---------------------------------------------------------------------------

NETWORK = 'c.networks["mine"] = ConfigDict({"channels": (8, 16)})'
OTHER_NETWORK = "c.networks.trans_unet.more = 1"
OTHER_SOURCE = "c.data.tfds.more = 1"
DIFFUSION = "c.diffusion.more = 1"
SECTION = 'c.extra = ConfigDict({"field": 7})'
TRAIN = "c.train.more = 3"
OWN_NETWORK = "c.networks.unet.more = 2"
CHANGED = "c.networks.unext.channels = (4, 4, 8, 8, 16)"


def longer_default(folder: pathlib.Path, *lines: str) -> str:
    """A configs/default.py with more in it, as a file in `folder`."""
    text = (ROOT / "configs" / "default.py").read_text()
    assert text.count("    return c.lock()\n") == 1
    more = "".join(f"    {line}\n" for line in lines)
    (folder / "default.py").write_text(
        text.replace("    return c.lock()\n", f"{more}    return c.lock()\n")
    )
    return str(folder / "default.py")


def with_fields(c: ConfigDict, **fields) -> ConfigDict:
    """A config of the fork, dots as double underscores."""
    c.unlock()
    for name, value in fields.items():
        set_field(c, name.replace("__", "."), value)
    return c


@pytest.mark.parametrize(
    "line", [NETWORK, OTHER_NETWORK, OTHER_SOURCE, DIFFUSION, CHANGED]
)
def test_what_a_run_does_not_read_may_be_added_or_changed_without_a_word(
    tmp_path, monkeypatch, capsys, line
):
    run_config.save(phantom.get_config("unet"), tmp_path / "config.json")
    monkeypatch.setattr(known_fields, "DEFAULT", longer_default(tmp_path, line))
    forks = phantom.get_config("unet")
    with forks.unlocked():
        exec(line, {"c": forks, "ConfigDict": ConfigDict})
    check_config(forks)
    run_config.check_same_run(forks, tmp_path)
    check_config(run_config.load(tmp_path))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        (TRAIN, "train.more", 3),
        (OWN_NETWORK, "networks.unet.more", 2),
        (SECTION, "extra.field", 7),
    ],
)
def test_what_a_run_reads_gets_the_default_and_one_line(
    tmp_path, monkeypatch, capsys, line, name, value
):
    run_config.save(phantom.get_config("unet"), tmp_path / "config.json")
    monkeypatch.setattr(known_fields, "DEFAULT", longer_default(tmp_path, line))
    assert get_field(run_config.load(tmp_path), name) == value
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1 and f"{tmp_path}/config.json lacks {name}={value}, " in err
    )
    run_config.check_same_run(
        with_fields(phantom.get_config("unet"), **{name.replace(".", "__"): value}),
        tmp_path,
    )
    # said once
    assert capsys.readouterr().err == ""
    other = with_fields(
        phantom.get_config("unet"), **{name.replace(".", "__"): value + 1}
    )
    refused(
        lambda: run_config.check_same_run(other, tmp_path),
        f"{name} is {value} there and {value + 1} here",
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "train.gone",
            "has train.gone=5, which configs/default.py does not have. It is left out.",
        ),
        ("old.section", "has old.section=5,"),
        ("networks.unet.gone", "has networks.unet.gone=5,"),
        ("networks.former.channels", None),
        ("networks.unext.gone", None),
        ("data.tfds.gone", None),
    ],
)
def test_what_is_gone_is_left_out_and_told_where_the_run_read_it(
    tmp_path, capsys, name, said
):
    c = with_fields(phantom.get_config("unet"), **{name.replace(".", "__"): 5})
    run_config.save(c, tmp_path / "config.json")
    loaded = run_config.load(tmp_path)
    check_config(loaded)
    refused(lambda: get_field(loaded, name), name)
    run_config.check_same_run(phantom.get_config("unet"), tmp_path)
    err = capsys.readouterr().err
    assert (err == "") if said is None else (said in err and err.count("\n") == 1)


def test_what_is_gone_and_did_nothing_is_not_told(tmp_path, monkeypatch, capsys):
    run_config.save(
        with_fields(phantom.get_config("unet"), train__gone=5), tmp_path / "config.json"
    )
    monkeypatch.setitem(earlier_versions.REMOVED, "train.gone", 5)
    assert (
        "gone" not in run_config.load(tmp_path).train and capsys.readouterr().err == ""
    )


def test_a_students_section_stays(tmp_path):
    student = with_fields(
        phantom.get_config(), distill__grid=4, distill__teacher="there"
    )
    run_config.save(student, tmp_path / "config.json")
    assert run_config.load(tmp_path).distill.to_dict() == {
        "grid": 4,
        "teacher": "there",
    }


def flattened(c) -> dict:
    return json.loads(json.dumps(flat(c)))


@pytest.mark.parametrize(
    ("line", "goes"),
    [(NETWORK, True), (OTHER_NETWORK, True), (CHANGED, True), (TRAIN, False)],
)
def test_a_baseline_of_a_benchmark_is_compared_by_what_is_read(tmp_path, line, goes):
    side = {"median": 1.0, "spread": 0.1}
    fields = {
        "device": {"platform": "cpu", "kind": "a", "count": 1},
        "config": flattened(phantom.get_config("unet")),
        "programs": {"predict": {"milliseconds": side}},
        "ceilings": {
            "matmul_flop_per_second": {"float32": {"512": 1e9}},
            "copy_bytes_per_second": 1e9,
        },
    }
    (tmp_path / "bench.json").write_text(json.dumps(fields))
    forks = phantom.get_config("unet").unlock()
    exec(line, {"c": forks, "ConfigDict": ConfigDict})
    here = {"device": fields["device"], "config": flat(forks)}
    if goes:
        assert (
            baseline.read_baseline(str(tmp_path / "bench.json"), here)["config"]
            == fields["config"]
        )
    else:
        refused(
            lambda: baseline.read_baseline(str(tmp_path / "bench.json"), here),
            "train.more is None",
        )


def test_training_goes_on_bit_for_bit_after_a_fork_added_what_the_run_does_not_read(
    tmp_path,
):
    """The workdir of a whole run, and a copy that stands at its half, from where the
    longer project goes on.
    """
    line = [
        sys.executable,
        "-m",
        "biedsnet_jax.main",
        "--config=configs/phantom.py:unet,toy",
    ]
    line += [f"--config.compile_cache={tmp_path}/xla", "--quiet"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def train(project, workdir):
        return subprocess.run(
            [*line, f"--workdir={workdir}"],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    assert train(ROOT, tmp_path / "whole").returncode == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "4")
    fork = tmp_path / "fork"
    shutil.copytree(ROOT / "configs", fork / "configs")
    (fork / "biedsnet_jax").symlink_to(ROOT / "biedsnet_jax")
    longer_default(fork / "configs", NETWORK, OTHER_NETWORK, SECTION, TRAIN, CHANGED)
    done = train(fork, tmp_path / "half")
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("lacks") == 1
        and "lacks extra.field=7, train.more=3, which" in done.stderr
    )
    whole, half = (
        weights(tmp_path / name / "checkpoints" / "4" / "state")
        for name in ("whole", "half")
    )
    assert whole.keys() == half.keys() and len(whole) > 20
    for name, value in whole.items():
        assert np.array_equal(value, half[name]), name


def weights(folder) -> dict[str, np.ndarray]:
    """Every array of a checkpoint."""
    import jax

    with ocp.StandardCheckpointer() as checkpointer:
        leaves = jax.tree_util.tree_leaves_with_path(checkpointer.restore(folder))
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in leaves}
