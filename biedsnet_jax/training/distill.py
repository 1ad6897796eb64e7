"""Mode distill: trains a student that samples in one or two steps.

The teacher is a trained BIEDSNet; the student gets a workdir of its own.
"""

import pathlib

from biedsnet_jax.checkpoints import checkpoint
from biedsnet_jax.config import run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput
from biedsnet_jax.training import train


def run(cfg, workdir: str, output: str | None) -> dict:
    """Trains a student in `output`; returns its test results.

    `cfg` is made by `config.student`. The teacher is the best checkpoint of `workdir`,
    which is only read. Raises BadInput where it cannot be a teacher, or `output` is not
    a student's folder.
    """
    if "distill" not in cfg:
        raise BadInput(
            "--config is not that of a student. Leave it out: it is made from --workdir."
        )
    check_config(cfg)
    if not output:
        raise BadInput("--output is missing. Give a new folder for the student.")
    folder = pathlib.Path(output)
    if folder.resolve() == pathlib.Path(workdir).resolve():
        raise BadInput(f"--output {output} is the teacher's folder. Give a new one.")
    if (folder / "config.json").exists() and "distill" not in run_config.load(folder):
        raise BadInput(f"--output {output} holds another run. Give a new folder.")
    # Recorded, so that a resumed student notices when its teacher has changed.
    cfg.distill.step = checkpoint.best_step(workdir)
    return train.train(cfg, output)
