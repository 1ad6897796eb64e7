"""The config file that stands for a workdir: `--config=saved_config.py:WORKDIR` loads WORKDIR/config.json."""

from biedsnet_jax import config


def get_config(workdir: str):
    """The config that `workdir` was trained with."""
    return config.load(workdir)
