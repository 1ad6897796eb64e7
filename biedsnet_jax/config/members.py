"""The workdirs of an ensemble, and what they must have in common.

The first one's config says how all of them predict.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from biedsnet_jax.config import check, run_config
from biedsnet_jax.errors import BadInput, shown
from biedsnet_jax.runtime import files

# One workdir, or several, also as a text with commas.
Workdirs = str | Path | Sequence[str | Path]
# Fields that may differ between members, beside run_config.FREE: what the weights were
# trained with. Any other field must be the same, also one that a later version adds,
# until it is named here.
MAY_DIFFER = (*run_config.FREE, *run_config.OF_TRAINING, "seed")


def folders(workdir: Workdirs) -> list[Path]:
    """Lists the workdirs that a flag names, separated by commas, or a list of them.

    The name of one folder may hold commas. Raises BadInput for none, and for one that
    is named twice.
    """
    if isinstance(workdir, str):
        found = [Path(name) for name in files.folders(workdir)]
    elif isinstance(workdir, Path):
        found = [workdir]
    else:
        found = [Path(one) for one in workdir]
    if not found:
        raise BadInput("workdir names no folder. Give the folder of a run, or several.")
    places = [one.resolve() for one in found]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise BadInput(f"{found[number]} is named twice. Give each workdir once.")
    return found


def check_members(workdirs: Sequence[Path], config: ConfigDict) -> None:
    """Raises BadInput unless the runs of `workdirs` can predict as one.

    `config` is how they predict. They need the same network, image and classes, and a
    training that mirrored what `config` mirrors.
    """
    first = run_config.load(workdirs[0])
    for workdir in workdirs[1:]:
        for name, there, here in run_config.differences(workdir, first):
            if not name.startswith(MAY_DIFFER):
                raise BadInput(
                    f"{shown(name)} is {here!r} in {workdirs[0]} and {there!r} in {workdir}. "
                    "Give models that have it in common."
                )
        mirror = config.sampler.mirror
        check.check_mirror(run_config.load(workdir), mirror, str(workdir))
