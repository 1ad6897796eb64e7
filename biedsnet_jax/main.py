"""The command line: flags and modes.

biedsnet train --config=phantom --workdir=runs/phantom
python -m biedsnet_jax.main --mode=train --config=phantom --workdir=runs/phantom
"""

import os
import pathlib
import shlex
import sys
import time

from absl import app, flags
from ml_collections import config_flags

from biedsnet_jax import __version__, commands
from biedsnet_jax.config import command_line, config_file
from biedsnet_jax.errors import BadInput, Diverged, Preempted, shown
from biedsnet_jax.runtime import console, memory

# The texts of flags stand in `commands`.
_CONFIG = config_flags.DEFINE_config_file("config", None, commands.flag_help("config"))
_MODE = flags.DEFINE_enum(
    "mode", "train", sorted(commands.COMMANDS), "the command; see --help"
)
_WORKDIR = flags.DEFINE_string("workdir", None, commands.flag_help("workdir"))
_OUTPUT = flags.DEFINE_string("output", None, commands.flag_help("output"))
_NETWORK = flags.DEFINE_string("network", None, commands.flag_help("network"))
_INPUT = flags.DEFINE_string("input", None, commands.flag_help("input"))
# `command_line.spelled_out` makes a field of it.
flags.DEFINE_string("data", None, commands.flag_help("data"))
_SAMPLES = flags.DEFINE_bool("samples", False, commands.flag_help("samples"))
_COMPARE = flags.DEFINE_string("compare", None, commands.flag_help("compare"))
_REPEATS = flags.DEFINE_integer("repeats", 7, commands.flag_help("repeats"))
_HOST = flags.DEFINE_string("host", "127.0.0.1", commands.flag_help("host"))
_PORT = flags.DEFINE_integer("port", 8000, commands.flag_help("port"))
_UPLOAD_MB = flags.DEFINE_integer(
    "upload_mb", 256, commands.flag_help("upload_mb"), lower_bound=1
)
_WAITING = flags.DEFINE_integer(
    "waiting", 16, commands.flag_help("waiting"), lower_bound=1
)
_SCAN_SECONDS = flags.DEFINE_integer(
    "scan_seconds", 600, commands.flag_help("scan_seconds"), lower_bound=1
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, commands.flag_help("coordinator")
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, commands.flag_help("num_processes")
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, commands.flag_help("process_id"))
_JSON = flags.DEFINE_bool("json", False, commands.flag_help("json"))
_QUIET = flags.DEFINE_bool("quiet", False, commands.EVERYWHERE["quiet"])
_DEBUG = flags.DEFINE_bool("debug", False, commands.EVERYWHERE["debug"])
_HELP_FIELDS = flags.DEFINE_bool(
    "helpfields", False, "show every field of a config, its default and its range"
)
_VERSION = flags.DEFINE_bool("version", False, "show the version")


def main() -> None:
    """Runs the command line of this process, and ends it."""
    app.define_help_flags()
    console.keep_streams()
    sys.exit(run(sys.argv))


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
        argv = commands.as_flags(argv)
        if commands.wants_help(argv):
            return _help(argv)
        parse_flags(argv)
        console.set_quiet(_QUIET.value)
        if _VERSION.value:
            print(f"biedsnet {__version__}")
            return 0
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
        after = commands.COMMANDS[_MODE.value].after_stop
        return _failed(f"Stopped by Ctrl-C. {after}".rstrip(), 130)
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


def _help(argv):
    """Prints the help of the command line's mode, or of the program without one."""
    mode = command_line.value(argv, "mode", flags.FLAGS)
    print(commands.help_text(mode, flags.FLAGS), end="")
    return 0


def _help_fields():
    from biedsnet_jax.config import reference

    print(reference.text(), end="")
    return 0


# Each mode is a function with its imports inside, since a report needs no jax and
# predicting no training.


def _train(argv):
    began = time.monotonic()
    memory.keep_freed()
    from biedsnet_jax.training import train

    _print_scores(train.train(_start(), _WORKDIR.value), _WORKDIR.value, began)


def _distill(argv):
    began = time.monotonic()
    memory.keep_freed()
    from biedsnet_jax.training import distill

    student = _OUTPUT.value
    _print_scores(distill.run(_start(), _WORKDIR.value, student), student, began)


def _evaluate(argv):
    began = time.monotonic()
    from biedsnet_jax.config import members
    from biedsnet_jax.evaluation import evaluate

    workdirs = members.folders(_WORKDIR.value)
    _print_scores(evaluate.run(_start(), workdirs), workdirs[0], began)


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
    memory.keep_freed()
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


def _info(argv):
    from biedsnet_jax.reporting import info

    info.run(_WORKDIR.value, as_json=_JSON.value)


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
    "info": _info,
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
        with config_file.importable():
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
    main()
