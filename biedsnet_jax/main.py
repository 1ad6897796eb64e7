"""The command line: flags and modes.

python -m biedsnet_jax.main --config=configs/phantom.py --workdir=runs/phantom
"""

import os
import pathlib
import shlex
import sys
import time

from absl import app, flags
from ml_collections import config_flags

from biedsnet_jax.config import command_line
from biedsnet_jax.errors import BadInput, Diverged, Preempted, shown
from biedsnet_jax.runtime import console

# What follows "Stopped by Ctrl-C." Training says it itself once it has begun.
_NEXT = {
    "train": "Nothing was trained yet. The same command begins where this one did.",
    "distill": "Nothing was trained yet. The same command begins where this one did.",
    "evaluate": "The same command scores all cases again.",
    "predict": "The same command goes on with the scans that are not done.",
    "import": "The same command begins again.",
    "export": "The same command begins again.",
    "benchmark": "",
    "report": "The same command begins again.",
    "serve": "",
}

_MODE_HELP = (
    "train: train a config in a workdir, then score its test split; "
    "evaluate: score a trained workdir; "
    "predict: segment files with it; "
    "serve: open a page that segments what is dropped on it; "
    "export: make a program of it that runs without this package; "
    "distill: train a student of it that needs fewer steps; "
    "import: make a workdir from PyTorch weights; "
    "report: make tables of evaluated workdirs; "
    "benchmark: time a config on this machine, without data"
)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "FILE.py[:VARIANT,VARIANT]; a field is set as --config.train.steps=100",
)
_MODE = flags.DEFINE_enum("mode", "train", sorted(_NEXT), _MODE_HELP)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "folder of the run: config, checkpoints, results; report: one or several, with commas",
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "predict: folder of the masks; report: HTML file, beside which the same is written as "
    "Markdown; benchmark: JSON file; distill: the student's workdir; export: folder of the "
    "program",
)
_NETWORK = flags.DEFINE_string(
    "network",
    None,
    "import: network of the weights, where --config is not given",
)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "predict: an image, a volume, or a folder of them; import: .npz, .safetensors or .pth "
    "file of the weights",
)
_SAMPLES = flags.DEFINE_bool(
    "samples", False, "predict, export: keep every sample of a diffusion method"
)
_COMPARE = flags.DEFINE_string(
    "compare", None, "benchmark: an earlier --output, to see what got slower since"
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 7, "benchmark: number of times each program is timed after warm-up"
)
_HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "serve: address to listen at; any but this machine's own needs a token",
)
_PORT = flags.DEFINE_integer("port", 8000, "serve: port; 0 takes a free one")
_UPLOAD_MB = flags.DEFINE_integer(
    "upload_mb", 256, "serve: the largest upload, in MiB", lower_bound=1
)
_WAITING = flags.DEFINE_integer(
    "waiting",
    16,
    "serve: most uploads that wait, and most results that are kept",
    lower_bound=1,
)
_SCAN_SECONDS = flags.DEFINE_integer(
    "scan_seconds", 600, "serve: longest time for one scan, in seconds", lower_bound=1
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "several processes: HOST:PORT of the first one; not needed on SLURM and TPU pods",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "several processes: how many"
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "several processes: number of this one, from 0"
)
_QUIET = flags.DEFINE_bool(
    "quiet", False, "show only errors, warnings and the final summary"
)
_HELP_FIELDS = flags.DEFINE_bool(
    "helpfields", False, "show every field of a config, its default and its range"
)
_DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of an error")


def run(argv: list[str]) -> int:
    """Runs a command line and returns its exit code.

    0: done, or SIGTERM with a checkpoint written. 1: training diverged, or another
    process of the run is gone. 2: a mistake of the user's. 3: some scans of many could
    not be segmented. 129: SIGHUP, 130: Ctrl-C, where training writes a checkpoint. All
    but 0 print a line on stderr; 3 prints one for each scan.
    """
    # XLA's C++ log, read once when jax is imported. Its errors also come as exceptions;
    # what else it shows is alarms of slow compilation. Level 3 leaves fatal errors.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        parse_flags(argv)
        console.set_quiet(_QUIET.value)
        if _HELP_FIELDS.value:
            return _help_fields()
        if not _WORKDIR.value and _MODE.value != "benchmark":
            raise BadInput(
                "--workdir is missing. Give the folder where the run is, or is to be, kept."
            )
        return _MODES[_MODE.value](argv) or 0
    except (BadInput, Diverged) as error:
        if _shows_tracebacks(argv):
            raise
        return _failed(str(error), 2 if isinstance(error, BadInput) else 1)
    except KeyboardInterrupt:
        return _failed(f"Stopped by Ctrl-C. {_NEXT[_MODE.value]}".rstrip(), 130)
    except Preempted as stop:
        return _failed(str(stop), stop.code)
    # One process of several ends the others, so that none waits for it.
    except Exception as error:
        if _shows_tracebacks(argv):
            raise
        from biedsnet_jax.runtime import processes

        if not processes.several():
            raise
        return _failed(processes.describe(error), 1)


def _help_fields():
    from biedsnet_jax.config import reference

    print(reference.text(), end="")
    return 0


# Each mode is a function with its imports inside, since a report needs no jax and
# predicting no training.


def _train(argv):
    began = time.monotonic()
    from biedsnet_jax.training import train

    _print_scores(train.train(_start(), _WORKDIR.value), _WORKDIR.value, began)


def _distill(argv):
    began = time.monotonic()
    from biedsnet_jax.training import distill

    student = _OUTPUT.value
    _print_scores(distill.run(_start(), _WORKDIR.value, student), student, began)


def _evaluate(argv):
    began = time.monotonic()
    from biedsnet_jax.evaluation import evaluate

    _print_scores(evaluate.run(_start(), _WORKDIR.value), _WORKDIR.value, began)


def _predict(argv):
    from biedsnet_jax.prediction import predict

    return predict.run(
        _start(),
        _WORKDIR.value,
        _INPUT.value,
        _OUTPUT.value,
        keep_samples=_SAMPLES.value,
    )


def _import(argv):
    from biedsnet_jax.importing import import_weights

    import_weights.run(_start(), _WORKDIR.value, _INPUT.value)


def _export(argv):
    from biedsnet_jax.exporting import export

    export.run(_start(), _WORKDIR.value, _OUTPUT.value, keep_samples=_SAMPLES.value)


def _benchmark(argv):
    from biedsnet_jax.benchmarking import benchmark

    benchmark.run(
        # Without the cache, since compiling is timed.
        _start(compile_cache=False),
        command=shlex.join(["python", "-m", "biedsnet_jax.main", *argv[1:]]),
        output=_OUTPUT.value,
        compare=_COMPARE.value,
        repeats=_REPEATS.value,
    )


def _report(argv):
    from biedsnet_jax.reporting import report

    report.run(_WORKDIR.value, _OUTPUT.value)


def _serve(argv):
    from biedsnet_jax.serving import serve
    from biedsnet_jax.serving.limits import Limits

    limits = Limits(
        upload=_UPLOAD_MB.value * 2**20,
        job_seconds=_SCAN_SECONDS.value,
        waiting=_WAITING.value,
        kept=_WAITING.value,
    )
    serve.run(_start(), _WORKDIR.value, _HOST.value, _PORT.value, limits)


_MODES = {
    "train": _train,
    "distill": _distill,
    "evaluate": _evaluate,
    "predict": _predict,
    "import": _import,
    "export": _export,
    "benchmark": _benchmark,
    "report": _report,
    "serve": _serve,
}


def _start(*, compile_cache: bool = True):
    """Starts processes and the compile cache, and returns the config."""
    from biedsnet_jax.runtime import devices, processes

    if _CONFIG.value is None:
        raise BadInput(command_line.NO_CONFIG)
    processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if compile_cache:
        devices.enable_compile_cache(_CONFIG.value.compile_cache)
    return _CONFIG.value


def _print_scores(results, workdir, began):
    """Prints the summary of a test."""
    from biedsnet_jax.evaluation import closing, evaluations

    # Of several processes only the first has results.
    if results:
        folder = evaluations.folder_of(pathlib.Path(workdir), results)
        closing.tested(results, folder, seconds=time.monotonic() - began)


def _failed(text, code):
    """Prints an error on stderr and returns the exit code."""
    # The mistake was found before jax was needed.
    if "biedsnet_jax.runtime.processes" not in sys.modules:
        print(f"biedsnet: {text}", file=sys.stderr)
        return code
    from biedsnet_jax.runtime import processes

    processes.say(text)
    # Leaves together with the other processes, if any.
    return processes.leave(code)


def parse_flags(argv: list[str]) -> None:
    """Parses a command line into FLAGS.

    --config may be left out where a trained workdir has the config. Raises BadInput for
    whatever absl, ml_collections or the config file refuse.
    """
    argv = command_line.with_config(_with_flag_files(argv), flags.FLAGS)
    defaults = command_line.load_config(argv, flags.FLAGS)
    read = {
        name: command_line.value(argv, name, flags.FLAGS)
        for name in ("config", "mode", "workdir", "network")
    }
    # config_flags looks for overrides in sys.argv.
    sys.argv[:] = argv
    try:
        stray = flags.FLAGS(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(command_line.reworded(error, defaults)) from error
    # absl leaves words that belong to no flag.
    if stray:
        raise BadInput(
            f"{shown(stray[0])} is not a flag. Flags look like --name=value."
        )
    command_line.check_read_alike(read, flags.FLAGS)


def _with_flag_files(argv):
    """Replaces --flagfile by the flags in that file."""
    try:
        return [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
    except flags.Error as error:
        raise BadInput(command_line.reworded(error, None)) from error


def _shows_tracebacks(argv):
    """Whether --debug is given; a command line that cannot be parsed may have it too."""
    return command_line.is_true(command_line.value(argv, "debug", flags.FLAGS))


if __name__ == "__main__":
    app.define_help_flags()
    sys.exit(run(sys.argv))
