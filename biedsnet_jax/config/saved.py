"""The config file that stands for a workdir: `--config=saved.py:WORKDIR` loads
WORKDIR/config.json.
"""

from biedsnet_jax.config import run_config


def get_config(workdir: str):
    """The config that `workdir` was trained with."""
    return run_config.load(workdir)
