"""Shared by the scripts of this folder: command lines, reports, memory of processes."""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """A parser of a script's own flags; its help is the docstring of the script."""
    return argparse.ArgumentParser(
        description=docstring,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def steps_a_second(cfg) -> float:
    """Times the training step of a config, as mode benchmark does."""
    # Imported here, since some scripts do without jax.
    from biedsnet_jax.benchmarking import benchmark
    from biedsnet_jax.runtime import devices

    devices.enable_compile_cache("auto")
    _, update = benchmark.programs(cfg, devices.make_mesh())
    _, fields, _ = benchmark.measure(update, repeats=10)
    return 1e3 / fields["milliseconds"]["median"]


def read_config(words: list[str]):
    """The checked config that the package's flags `words` name.

    Raises BadInput if they name none.
    """
    # Imported here, since some scripts do without jax.
    from absl import flags

    from biedsnet_jax import main
    from biedsnet_jax.config.check import check_config
    from biedsnet_jax.errors import BadInput

    main.parse_flags([sys.argv[0], *words])
    config = flags.FLAGS.config
    if config is None:
        raise BadInput(
            "--config is missing. Give a config file, such as --config=configs/covid.py"
        )
    check_config(config)
    return config


def show(report: dict, output: str | None) -> None:
    """Prints a report, and writes it to the file `output` if one is given."""
    text = json.dumps(report, indent=2)
    print(text)
    if output:
        Path(output).write_text(text + "\n")


def resident_mib(pid: int) -> float:
    """Resident memory of a process on Linux; 0 if the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) / 1024
    except (OSError, AttributeError):
        return 0.0
