"""The config of a run, stored with its workdir, and what may differ from it when the
run goes on.
"""

import json
import pathlib

from ml_collections import ConfigDict, config_dict

from biedsnet_jax.config import earlier_versions, known_fields, network_file
from biedsnet_jax.config.fields import flat
from biedsnet_jax.data import case_names
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import files, processes

# Fields that may differ between a workdir and the command that goes on with it: they
# change no update.
FREE = (
    "data.root",
    "data.hint",
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
)
# Fields that a student has from its teacher. "network" stands for "networks." too. With
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
    """Write the config as JSON, atomically, and before it the network's own file, if it
    has one.
    """
    if config.get("network_file"):
        files.write_bytes(
            path.with_name(network_file.COPY), network_file.read(config.network_file)
        )
        config = config.copy_and_resolve_references()
        config.network_file = network_file.COPY
    files.write_text(path, config.to_json_best_effort(indent=2) + "\n")


def load(workdir: str | pathlib.Path) -> ConfigDict:
    """The config a workdir was trained with, an earlier version's completed, and
    locked.

    What it lacks and its run reads is said on stderr, once. Raises BadInput where there
    is none.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        text = path.read_text(errors="replace")
    except OSError:
        raise BadInput(
            f"no trained run, {workdir}, in --workdir; it has no config.json, train first"
        ) from None
    try:
        config = _thaw(json.loads(text))
    # of JSON; a dot in the name of a field
    except (ValueError, RecursionError) as error:
        where = (
            f"line {error.lineno}"
            if isinstance(error, json.JSONDecodeError)
            else reason(error)
        )
        raise BadInput(
            f"damaged config, {where}, {path}; restore it or use another --workdir"
        ) from None
    if not isinstance(config, ConfigDict):
        raise BadInput(
            f"damaged config, no fields, {path}; restore it or use another --workdir"
        )
    _check_whole(config, path)
    if config.get("network_file"):
        # The copy in the workdir, wherever that was moved to.
        config.network_file = str(path.with_name(network_file.COPY))
    for sentences in earlier_versions.renew(config):
        _say_once(f"{path} {sentences}")
    return config.lock()


def _check_whole(config, path):
    """Raise BadInput where so much is gone that defaults would make another run of it."""
    network = config.get("network")
    if not isinstance(network, str):
        raise BadInput(
            f"{path} names no network. Restore it from a copy, or use another --workdir."
        )
    there = {name.rpartition(".")[0] for name in flat(config)}
    own = () if config.get("network_file") else (f"networks.{network}",)
    for section in (*own, "data", "split", "loss", "sampler", "train"):
        if section not in there:
            raise BadInput(
                f"{path} has no section {shown(section)}. Restore it from a copy, or use another --workdir."
            )


_SAID: set[str] = set()


def _say_once(text):
    """A warning; a command loads a config several times."""
    if text not in _SAID:
        _SAID.add(text)
        processes.say(text)


def check_same_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Raise BadInput when `workdir` belongs to a run that this config would not
    continue bit for bit.

    A run that was started before data.case was a field goes on with the cases it had,
    each time: `config` is told so.
    """
    if not (workdir / "config.json").exists():
        return
    # The field's default then and now: nobody asks for either. Once the run went on,
    # its config.json has the field.
    if (
        load(workdir).data.case == case_names.EACH
        and config.data.case == case_names.AUTO
    ):
        config.data.case = case_names.EACH
    check_trained(config, workdir)


def check_trained(
    config: ConfigDict, workdir: pathlib.Path, *, free: tuple[str, ...] = ()
) -> None:
    """Raise BadInput when `workdir` holds no run, or not this config's; fields of FREE
    and of `free` may differ.
    """
    for name, there, here in _differences(workdir, config):
        if not name.startswith((*FREE, *free)):
            raise BadInput(
                f"workdir of another config, {shown(name)} is {there!r} there and {here!r} here, {workdir}; "
                "use another --workdir, or the config it was started with"
            )


def check_teacher(config: ConfigDict) -> None:
    """Raise BadInput when a student's teacher is gone, or has another network or
    diffusion than its student.
    """
    workdir = pathlib.Path(files.expanded(config.distill.teacher))
    if not (workdir / "config.json").exists():
        raise BadInput(
            f"teacher gone, {workdir}, in distill.teacher; put its workdir back there to go on"
        )
    for name, there, here in _differences(workdir, config):
        if name.startswith(SHARED):
            raise BadInput(
                f"student unlike its teacher, {here!r} for {there!r}, in {name}; leave it as in {workdir}"
            )


def _differences(workdir, config):
    """(field, value in `workdir`, value in `config`) where they differ in what either
    run reads.
    """
    old, new = (
        flat(load(workdir)),
        flat(_thaw(json.loads(config.to_json_best_effort()))),
    )
    here, there = new.get("network_file"), old.get("network_file")
    if here and there and network_file.read(here) == network_file.read(there):
        new["network_file"] = there
    for name in sorted(old.keys() | new.keys()):
        used = known_fields.is_used(name, old) or known_fields.is_used(name, new)
        if used and old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _thaw(value):
    """JSON back to what a config holds: dicts to ConfigDict, lists to tuples, null to
    an unset string.
    """
    if isinstance(value, dict):
        return ConfigDict({name: _thaw(item) for name, item in value.items()})
    if isinstance(value, list):
        return tuple(_thaw(item) for item in value)
    return config_dict.placeholder(str) if value is None else value
