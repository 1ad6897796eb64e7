"""The Python API: what `import biedsnet_jax as bj` offers.

Each function does what a mode of the command line does. Mistakes raise `BadInput`, with
the sentences that the command line would print.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from biedsnet_jax.config import config_file
from biedsnet_jax.config.fields import with_fields
from biedsnet_jax.errors import BadInput

if TYPE_CHECKING:
    from biedsnet_jax.prediction.predictor import Predictor

# One workdir, or those of several models that predict as one.
Workdirs = str | Path | Sequence[str | Path]

# Each function has its imports inside: a config needs no jax, and predicting none of
# what training does.


def get_config(name: str | Path, fields: Mapping[str, Any] | None = None) -> ConfigDict:
    """Returns a config by its name and variants, such as "covid:cpu" or "mine.py".

    `fields` are set in it by dotted name, such as {"train.steps": 100}. Raises BadInput
    for a config, a variant or a field that does not exist, and for a value of another
    type.
    """
    return with_fields(config_file.get_config(str(name)), fields or {})


def load(workdir: Workdirs, fields: Mapping[str, Any] | None = None) -> "Predictor":
    """Loads the best checkpoint of a trained workdir, to segment arrays and files.

    A list of workdirs is loaded as one model, whose samples are those of all. `fields`
    change how it predicts, such as {"sampler.steps": 20}. Compiled programs are kept in
    the user's cache folder, so that only the first process compiles. Raises BadInput
    where a workdir holds no trained run or does not fit the others, and where a field
    does not fit it.
    """
    from biedsnet_jax.prediction import predictor

    workdirs = _paths(workdir)
    config = _config_of(workdirs[0], fields)
    _start(config)
    return predictor.load(workdirs, config)


def train(
    config: ConfigDict | str | Path, workdir: str | Path
) -> dict[str, Any] | None:
    """Trains a config in a workdir, scores its test split and writes the report.

    `config` is one of `get_config`, or its name. The same call goes on where an earlier
    one stopped. Returns the content of results.json, and None on all of several
    processes but the first. Raises BadInput for a config that cannot be trained and a
    workdir of another one, Diverged for a training that failed, and Preempted where
    Ctrl-C ended it with a checkpoint.
    """
    from biedsnet_jax.training import train

    if isinstance(config, (str, Path)):
        config = get_config(config)
    _start(config)
    return train.train(config, str(_path(workdir)))


def evaluate(
    workdir: Workdirs, fields: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Scores a trained workdir on its test split again, or on other data.

    A list of workdirs is scored as one model, on the data of the first. `fields` change
    how, such as {"sampler.ensemble": 9} or {"data.root": "theirs"}. Returns the content
    of results.json, and None on all of several processes but the first. Raises BadInput
    as `load` does.
    """
    from biedsnet_jax.evaluation import evaluate

    workdirs = _paths(workdir)
    config = _config_of(workdirs[0], fields)
    _start(config)
    return evaluate.run(config, workdirs)


def _paths(workdir) -> list[Path]:
    """The workdirs of one model, or of several that predict as one."""
    if isinstance(workdir, str | Path):
        return [_path(workdir)]
    if not workdir:
        raise BadInput(
            "workdir is an empty list. Give the folder of a run, or several."
        )
    return [_path(one) for one in workdir]


def _path(workdir) -> Path:
    from biedsnet_jax.runtime import files

    # pathlib would take the folder that the process is in.
    if workdir == "":
        raise BadInput("workdir is empty. Give the folder of the run.")
    return Path(files.expanded(str(workdir)))


def _config_of(workdir, fields) -> ConfigDict:
    from biedsnet_jax.config import run_config

    return with_fields(run_config.load(workdir), fields or {})


def _start(config) -> None:
    from biedsnet_jax.runtime import devices

    devices.enable_compile_cache(config.get("compile_cache", "auto"))
