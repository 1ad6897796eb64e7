"""A config file that stands for a workdir: `saved.py:WORKDIR` loads its config.json."""

from biedsnet_jax.config import run_config


def get_config(workdir: str):
    """Loads the config that `workdir` was trained with."""
    return run_config.load(workdir)
