"""A config file for mode distill: `student.py:WORKDIR` is a student of a trained run.

It has the teacher's config with these fields changed, and a section `distill`, which no
other config has.
"""

import os

from ml_collections import ConfigDict

from biedsnet_jax.config import run_config


def get_config(workdir: str) -> ConfigDict:
    """The config of a student of the run in `workdir`, before overrides."""
    c = run_config.load(workdir)
    distill = ConfigDict()
    distill.teacher = os.path.abspath(workdir)
    # Step of the teacher's checkpoint, which mode distill sets.
    distill.step = 0
    # N, the number of times that the student is made consistent over.
    distill.grid = min(10, c.diffusion.timesteps)
    # Weight of the loss against the true mask; the one against the teacher's has 1.
    distill.truth_weight = 1.0
    with c.unlocked():
        c.distill = distill

    # It starts as its teacher.
    c.init.update(source="", freeze=())
    c.row = f"{c.row or c.network}_distilled"
    c.sampler.update(method="ddim", steps=1, eta=0.0, spacing="trailing")
    # It starts as the teacher, so a part of the teacher's training is enough.
    c.train.steps = max(1, c.train.steps // 4)
    c.train.warmup_steps = min(c.train.warmup_steps, c.train.steps // 10)
    c.train.learning_rate /= 4
    return c
