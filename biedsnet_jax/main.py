"""`python -m biedsnet_jax.main --config=configs/phantom.py --workdir=runs/phantom`: flags and modes, nothing else."""

import os
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from biedsnet_jax import config, evaluate, parallel, trainer
from biedsnet_jax.types import BadInput

MODES = {"train": trainer.train, "evaluate": evaluate.run}

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py[:VARIANT,VARIANT]; fields: --config.train.steps=100")
_MODE = flags.DEFINE_enum("mode", "train", sorted(MODES), "train ends with the test split; evaluate scores a workdir")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run: config, checkpoints, logs, results")
_DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of an error")


def main(_) -> None:
    """Run the mode; a user's mistake is one line and exit code 2."""
    logging.set_verbosity(logging.WARNING)  # Orbax says a page at every save
    try:
        if not _WORKDIR.value:
            raise BadInput("no workdir, nothing, in --workdir; give the folder where the run is, or is to be, kept")
        if _CONFIG.value is None:
            raise BadInput("no config, nothing, in --config; give a file such as --config=configs/phantom.py")
        parallel.enable_compile_cache(_CONFIG.value.compile_cache)
        results = MODES[_MODE.value](_CONFIG.value, _WORKDIR.value)
    except BadInput as error:
        _fail(error, 2)
    except trainer.Diverged as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        print("\nbiedsnet: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    _print_summary(results)


def _print_summary(results):
    standard = results["standard"]
    low, high = standard["dice"]["ci95"]
    print(
        f"test: {results['n_images']} slices of {results['n_cases']} cases, {results['n_empty']} of them empty\n"
        f"Dice {_number(standard['dice']['mean'])} (95 % by case {_number(low)} to {_number(high)})  "
        f"IoU {_number(standard['iou']['mean'])}  HD95 {_number(standard['hd95']['mean'])} px  "
        f"{results['seconds_per_image']:.3f} s an image\n"
        f"{_WORKDIR.value}/results.json has the rest"
    )


def _number(value):
    return "none" if value is None else f"{value:.4f}"


def _fail(error, code):
    if _DEBUG.value:
        raise error
    print(f"biedsnet: {error}", file=sys.stderr)
    sys.exit(code)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse, with absl's and ml_collections' errors reworded to one line.

    A mode that reads a trained workdir takes its config from there, so `--config=` may be left out.
    """
    argv = _with_saved_config(argv)
    sys.argv[:] = argv  # config_flags looks for overrides there
    try:
        return flags.FLAGS(argv)
    except BadInput as error:
        message = str(error)
    except FileNotFoundError as error:
        message = f"no such config, {error.filename or error}, in --config; give a file such as configs/phantom.py"
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        message = _reworded(error, argv)
    print(f"biedsnet: {message}", file=sys.stderr)
    sys.exit(2)


def _with_saved_config(argv):
    """Put `--config=saved_config.py:WORKDIR` first where a trained workdir stands and no config is named."""
    if any(re.match(r"--?config(=|$)", a) for a in argv):
        return argv
    workdir = _flag_value(argv, "workdir")
    if not workdir or not os.path.exists(os.path.join(workdir, "config.json")):
        return argv
    loader = os.path.join(os.path.dirname(os.path.abspath(__file__)), "saved_config.py")
    return [argv[0], f"--config={loader}:{workdir}", *argv[1:]]


def _flag_value(argv, name):
    for i, argument in enumerate(argv):
        if re.match(rf"--?{name}=", argument):
            return argument.split("=", 1)[1]
        if re.fullmatch(rf"--?{name}", argument) and i + 1 < len(argv):
            return argv[i + 1]
    return None


def _reworded(error, argv):
    text = " ".join(str(error).split())
    unknown = [name for name in _overrides(argv) if not _has_field(name)]
    if unknown:
        nearest = config.nearest_field(unknown[0], _CONFIG.value) if _loaded() else None
        fix = f"did you mean --config.{nearest}" if nearest else "see configs/default.py for the fields"
        return f"unknown config field, {unknown[0]}, in --config.{unknown[0]}; {fix}"
    return f"bad flag, {text.rstrip('.')}; see --help"


def _overrides(argv):
    return [m.group(1) for a in argv if (m := re.match(r"--?config\.([\w.]+)", a))]


def _loaded():
    try:
        return _CONFIG.value is not None
    except flags.Error:
        return False


def _has_field(name):
    value = _CONFIG.value if _loaded() else None
    for part in name.split("."):
        if value is None or not hasattr(value, "keys") or part not in value:
            return False
        value = value[part]
    return True


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
