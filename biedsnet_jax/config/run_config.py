"""The config of a run in its workdir, and what may differ when the run goes on."""

import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, config_dict

from biedsnet_jax.config import earlier_versions, known_fields, network_file, plan
from biedsnet_jax.config.fields import flat
from biedsnet_jax.data import case_names
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import files, processes

# Fields that may differ between a workdir and the command that goes on with it, since
# they change no update of the parameters.
FREE = (
    "data.root",
    "data.hint",
    "data.class_names",
    "data.channel_names",
    "data.verify",
    "data.cache",
    "data.cache_dir",
    "data.tfds.data_dir",
    "compile_cache",
    "eval.",
    "log.",
    "checkpoint.",
    "parallel.",
    "sampler.",
    "fusion",
    "threshold",
    "postprocess",
)
# Fields of the training alone: the masks of given weights do not depend on them.
OF_TRAINING = (
    "row",
    "data.source",
    "data.name",
    "data.target",
    "data.ignore",
    "data.unannotated",
    "data.case",
    "data.min_foreground",
    "data.foreground",
    "data.phantom.",
    "data.tfds.",
    "split.",
    "augment.",
    "init.",
    "loss.",
    "train.",
    "distill.",
)
# Fields that a student shares with its teacher; "network" covers "networks." too. With
# another split it would be tested on what its teacher was trained on.
SHARED = (
    "network",
    "method",
    "diffusion.",
    "data.channels",
    "data.context",
    "data.classes",
    "split.",
)


def save(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes the config as JSON, atomically, and a copy of the network's own file."""
    if config.get("network_file"):
        files.write_bytes(
            path.with_name(network_file.COPY), network_file.read(config.network_file)
        )
        config = config.copy_and_resolve_references()
        config.network_file = network_file.COPY
    files.write_text(path, config.to_json_best_effort(indent=2) + "\n")


def load(workdir: str | pathlib.Path) -> ConfigDict:
    """Loads the config that a workdir was trained with, locked.

    A config of an earlier version is completed; a warning names missing fields that its
    run reads. Raises BadInput where there is no config or it is damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        text = path.read_text(errors="replace")
    except OSError:
        raise BadInput(
            f"{workdir} has no config.json, so it is no trained run. Train first, or give "
            "another --workdir."
        ) from None
    try:
        config = _thaw(json.loads(text))
    except json.JSONDecodeError as error:
        raise _damaged(path, f"line {error.lineno} is no JSON") from None
    # JSON that nests too deeply, or a dot in the name of a field.
    except (ValueError, RecursionError) as error:
        raise _damaged(path, reason(error)) from None
    _check_whole(config, path)
    if config.get("network_file"):
        # The workdir's copy, since the workdir may have been moved.
        config.network_file = str(path.with_name(network_file.COPY))
    for sentences in earlier_versions.renew(config):
        _warn_once(f"{path} {sentences}")
    return config.lock()


def _check_whole(config, path):
    """Raises BadInput where so much is gone that defaults would make another run of it."""
    if not isinstance(config, ConfigDict):
        raise _damaged(path, "it has no fields")
    network = config.get("network")
    if not isinstance(network, str):
        raise _damaged(path, "it names no network")
    there = {name.rpartition(".")[0] for name in flat(config)}
    own = () if config.get("network_file") else (f"networks.{network}",)
    for section in (*own, "data", "split", "loss", "sampler", "train"):
        if section not in there:
            raise _damaged(path, f"it has no section {shown(section)}")


def _damaged(path, what):
    return BadInput(
        f"{path} is damaged: {what}. Restore it from a copy, or use another --workdir."
    )


@functools.cache
def _warn_once(text):
    """Prints a warning; the cache keeps a command that loads twice from repeating it."""
    processes.say(text)


def earlier_steps(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """`train.steps` of the run in `workdir` where `config` has more, else None."""
    if not (workdir / "config.json").exists():
        return None
    steps = load(workdir).train.steps
    return steps if steps < config.train.steps else None


def check_same_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Raises BadInput where the run in `workdir` would not go on bit for bit.

    It may go on for more steps, by the schedule of so many. What `config` leaves to the
    data is set in it as the run found it. A run from before data.case was a field goes on
    with the cases that it had.
    """
    if not (workdir / "config.json").exists():
        return
    saved = load(workdir)
    # These are the defaults of then and now, which nobody asks for. Once the run has gone
    # on, its config.json has the field.
    if saved.data.case == case_names.EACH and config.data.case == case_names.AUTO:
        config.data.case = case_names.EACH
    plan.adopt_facts(config, saved)
    goes_further = earlier_steps(config, workdir) is not None
    check_trained(config, workdir, free=("train.steps",) if goes_further else ())


def check_trained(
    config: ConfigDict, workdir: pathlib.Path, *, free: tuple[str, ...] = ()
) -> None:
    """Raises BadInput unless `workdir` holds a run of this config.

    Fields of FREE and of `free` may differ. What `config` leaves open is set to what the
    run chose.
    """
    plan.adopt(config, load(workdir))
    for name, there, here in differences(workdir, config):
        if not name.startswith((*FREE, *free)):
            raise BadInput(
                f"{workdir} belongs to another config: {shown(name)} is {there!r} there and "
                f"{here!r} here. Use another --workdir, or the config it was started with."
            )


def check_teacher(config: ConfigDict) -> None:
    """Raises BadInput unless a student's teacher is there and shares fields of SHARED."""
    workdir = pathlib.Path(files.expanded(config.distill.teacher))
    if not (workdir / "config.json").exists():
        raise BadInput(
            f"distill.teacher is {workdir}, which has no config.json. Put the teacher's "
            "workdir back there."
        )
    for name, there, here in differences(workdir, config):
        if name.startswith(SHARED):
            raise BadInput(
                f"{name} is {here!r}, but {there!r} in the teacher, {workdir}. Leave it as "
                "it is there."
            )


def differences(
    workdir: pathlib.Path, config: ConfigDict
) -> Iterator[tuple[str, Any, Any]]:
    """Yields (field, value in `workdir`, value in `config`) where a run reads the field."""
    old = flat(load(workdir))
    # By way of JSON, so that both have the same types.
    new = flat(_thaw(json.loads(config.to_json_best_effort())))
    here = new.get("network_file")
    there = old.get("network_file")
    if here and there and network_file.read(here) == network_file.read(there):
        new["network_file"] = there
    for name in sorted(old.keys() | new.keys()):
        used = known_fields.is_used(name, old) or known_fields.is_used(name, new)
        if used and old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _thaw(value):
    """Turns JSON into what a config holds: ConfigDict, tuples, unset strings for null."""
    if isinstance(value, dict):
        return ConfigDict({name: _thaw(item) for name, item in value.items()})
    if isinstance(value, list):
        return tuple(_thaw(item) for item in value)
    return config_dict.placeholder(str) if value is None else value
