"""Mode distill: train a student of a trained BIEDSNet, one that needs one or two steps,
into a workdir of its own.
"""

import pathlib

from biedsnet_jax.checkpoints import checkpoint
from biedsnet_jax.config import run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput
from biedsnet_jax.training import train


def run(cfg, workdir: str, output: str | None) -> dict:
    """Train in `output` as `cfg`, made by `config.student`, says; returns the test
    results.

    The teacher is the best checkpoint of `workdir`; it is read, never written. Raises
    BadInput where it cannot be a teacher, or `output` is not a student's place.
    """
    if "distill" not in cfg:
        raise BadInput(
            "config of no student, a file, in --config; leave it out, it is made from --workdir"
        )
    check_config(cfg)
    if not output:
        raise BadInput(
            "no folder for the student, nothing, in --output; give a new one"
        )
    folder = pathlib.Path(output)
    if folder.resolve() == pathlib.Path(workdir).resolve():
        raise BadInput(
            f"student in its teacher's folder, {output}, in --output; give a new one"
        )
    if (folder / "config.json").exists() and "distill" not in run_config.load(folder):
        raise BadInput(f"folder of another run, {output}, in --output; give a new one")
    cfg.distill.step = checkpoint.best_step(workdir)
    return train.train(cfg, output)
