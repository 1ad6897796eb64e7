"""Workdirs of earlier versions and of forks stay usable.

golden/first_config.json is a config.json from before any field was added. A fork is a
copy of the project with a longer configs/default.py.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict
from places import GOLDEN, ROOT
from refusals import refused

from biedsnet_jax.benchmarking import baseline
from biedsnet_jax.config import config_file, earlier_versions, run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import find, flat, get_field, set_field
from configs import default, phantom

FIRST = GOLDEN / "first_config.json"


def plain(value):
    """A section as a dict, any other value as it is."""
    return value.to_dict() if hasattr(value, "to_dict") else value


def old_workdir(folder, without=()):
    """A workdir with the first version's config.json, or today's `without` some fields."""
    text = FIRST.read_text()
    if without:
        c = phantom.get_config().unlock()
        for name in without:
            above, _, field = name.rpartition(".")
            del (get_field(c, above) if above else c)[field]
        text = c.to_json_best_effort()
    (folder / "config.json").write_text(text)
    return folder


def test_the_first_versions_workdir_has_every_field_of_today(tmp_path):
    loaded = earlier_versions.complete(ConfigDict(json.loads(FIRST.read_text())))
    missing = flat(default.get_config()).keys() - flat(loaded).keys()
    assert not missing, "give each a line in biedsnet_jax/config/earlier_versions.py"


def test_the_first_versions_workdir_goes_on_without_a_word(tmp_path, capsys):
    loaded = run_config.load(old_workdir(tmp_path))
    check_config(loaded)
    run_config.check_same_run(loaded, tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", earlier_versions.ADDED)
def test_todays_config_goes_on_with_a_workdir_that_lacks_a_later_field(tmp_path, name):
    workdir, value = old_workdir(tmp_path, without=[name]), earlier_versions.ADDED[name]
    assert plain(find(run_config.load(workdir), name)) == plain(value)
    same = phantom.get_config()
    same.update_from_flattened_dict({name: value})
    run_config.check_same_run(same, workdir)


def test_a_value_that_is_there_stays_and_a_missing_section_is_not_made_up():
    c = default.get_config().unlock()
    c.diffusion.self_condition = True
    assert earlier_versions.complete(c).diffusion.self_condition is True
    del c.diffusion
    assert "diffusion" not in earlier_versions.complete(c)


@pytest.mark.parametrize(
    ("start", "run", "warning"),
    [
        ("noise", 8, None),
        ("direct", 8, "sampler.start='direct'"),
        ("noise", 4, "sampler.start_run=4"),
        ("slice", 4, "sampler.start='slice'"),
    ],
)
def test_an_earlier_warm_start_is_left_out_with_a_warning_where_it_was_used(
    tmp_path, capsys, start, run, warning
):
    c = phantom.get_config().unlock()
    c.sampler.update(start=start, start_fraction=0.5, start_run=run)
    run_config.save(c, tmp_path / "config.json")
    loaded = run_config.load(tmp_path)
    now = {"method", "steps", "eta", "spacing", "ensemble", "mirror"}
    assert set(loaded.sampler) == now
    check_warning(capsys, warning)


def check_warning(capsys, part):
    """Asserts that there was one line with `part` on stderr, or none where it is None."""
    lines = capsys.readouterr().err.splitlines()
    if part is None:
        assert lines == []
    else:
        (line,) = lines
        assert part in line


def test_sections_that_are_filled_in_are_each_configs_own():
    one, other = ConfigDict(), ConfigDict()
    earlier_versions.complete(one).parallel.fsdp = 4
    assert earlier_versions.complete(other).parallel.fsdp == 1


# --- a fork that added or took away fields -------------------------------------------

NETWORK = 'c.networks["own"] = ConfigDict({"channels": (8, 16)})'
OTHER_NETWORK = "c.networks.trans_unet.more = 1"
OTHER_SOURCE = "c.data.tfds.more = 1"
DIFFUSION = "c.diffusion.more = 1"
SECTION = 'c.extra = ConfigDict({"field": 7})'
TRAIN = "c.train.more = 3"
OWN_NETWORK = "c.networks.unet.more = 2"
CHANGED = "c.networks.unext.channels = (4, 4, 8, 8, 16)"


def longer_default(folder: pathlib.Path, *lines: str) -> pathlib.Path:
    """Writes a configs/default.py with more lines into `folder`, and returns its path."""
    text, end = (ROOT / "configs" / "default.py").read_text(), "    return c.lock()\n"
    assert text.count(end) == 1
    more = "".join(f"    {line}\n" for line in lines)
    (folder / "default.py").write_text(text.replace(end, more + end))
    return folder / "default.py"


def with_field(name, value) -> ConfigDict:
    """A U-Net's config of the fork, with one more field."""
    c = phantom.get_config("unet").unlock()
    set_field(c, name, value)
    return c


@pytest.mark.parametrize(
    "line", [NETWORK, OTHER_NETWORK, OTHER_SOURCE, DIFFUSION, CHANGED]
)
def test_what_a_run_does_not_read_may_be_added_or_changed_without_a_word(
    tmp_path, monkeypatch, capsys, line
):
    run_config.save(phantom.get_config("unet"), tmp_path / "config.json")
    longer = longer_default(tmp_path, line)
    monkeypatch.setattr(config_file, "default", lambda: longer)
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
    longer = longer_default(tmp_path, line)
    monkeypatch.setattr(config_file, "default", lambda: longer)
    assert get_field(run_config.load(tmp_path), name) == value
    check_warning(capsys, f"{tmp_path}/config.json lacks {name}={value}, ")
    run_config.check_same_run(with_field(name, value), tmp_path)
    # The warning comes once.
    check_warning(capsys, None)
    other = with_field(name, value + 1)
    says = f"{name} is {value} there and {value + 1} here"
    refused(lambda: run_config.check_same_run(other, tmp_path), says)


@pytest.mark.parametrize(
    ("name", "is_read"),
    [
        ("train.gone", True),
        ("old.section", True),
        ("networks.unet.gone", True),
        ("networks.former.channels", False),
        ("networks.unext.gone", False),
        ("data.tfds.gone", False),
    ],
)
def test_what_is_gone_is_left_out_with_a_warning_where_the_run_read_it(
    tmp_path, capsys, name, is_read
):
    run_config.save(with_field(name, 5), tmp_path / "config.json")
    loaded = run_config.load(tmp_path)
    check_config(loaded)
    refused(lambda: get_field(loaded, name), name)
    run_config.check_same_run(phantom.get_config("unet"), tmp_path)
    check_warning(capsys, f"has {name}=5, " if is_read else None)


def test_what_is_gone_and_did_nothing_needs_no_warning(tmp_path, monkeypatch, capsys):
    run_config.save(with_field("train.gone", 5), tmp_path / "config.json")
    monkeypatch.setitem(earlier_versions.REMOVED, "train.gone", 5)
    assert "gone" not in run_config.load(tmp_path).train
    check_warning(capsys, None)


def test_a_students_section_stays(tmp_path):
    run_config.save(with_field("distill.grid", 4), tmp_path / "config.json")
    assert run_config.load(tmp_path).distill.to_dict() == {"grid": 4}


@pytest.mark.parametrize(
    ("line", "goes"),
    [(NETWORK, True), (OTHER_NETWORK, True), (CHANGED, True), (TRAIN, False)],
)
def test_a_baseline_of_a_benchmark_is_compared_by_what_is_read(tmp_path, line, goes):
    side = {"median": 1.0, "spread": 0.1}
    fields = {
        "device": {"platform": "cpu", "kind": "a", "count": 1},
        "config": json.loads(json.dumps(flat(phantom.get_config("unet")))),
        "programs": {"predict": {"milliseconds": side}},
        "ceilings": {
            "matmul_flop_per_second": {"float32": {"512": 1e9}},
            "copy_bytes_per_second": 1e9,
        },
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(fields))
    forks = phantom.get_config("unet").unlock()
    exec(line, {"c": forks, "ConfigDict": ConfigDict})
    here = {"device": fields["device"], "config": flat(forks)}
    if goes:
        found = baseline.read_baseline(str(path), here)["config"]
        assert found == fields["config"]
    else:
        refused(lambda: baseline.read_baseline(str(path), here), "train.more")


@pytest.mark.slow
def test_training_goes_on_bit_for_bit_after_a_fork_added_fields(tmp_path):
    """The fork goes on from the half of a run, and ends as the project does."""
    line = [sys.executable, "-m", "biedsnet_jax.main", "--quiet"]
    line.append("--config=configs/phantom.py:unet,toy")
    line.append(f"--config.compile_cache={tmp_path}/xla")
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
    (line,) = [line for line in done.stderr.splitlines() if "lacks" in line]
    assert "extra.field=7, train.more=3" in line
    whole = weights(tmp_path / "whole" / "checkpoints" / "4" / "state")
    half = weights(tmp_path / "half" / "checkpoints" / "4" / "state")
    assert whole.keys() == half.keys() and len(whole) > 20
    for name, value in whole.items():
        assert np.array_equal(value, half[name]), name


def weights(folder) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by its place."""
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = jax.tree_util.tree_leaves_with_path(checkpointer.restore(folder))
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in leaves}
