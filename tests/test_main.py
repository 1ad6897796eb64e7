"""The command line: every mistake is one line on stderr that names what, where and the
fix, and nothing is written.
"""

import json
import subprocess
import sys
from pathlib import Path

import absl_flags
import numpy as np
import pytest
from absl import flags
from PIL import Image
from places import ROOT

from biedsnet_jax import main
from biedsnet_jax.config import run_config
from biedsnet_jax.errors import BadInput, Diverged, Preempted
from biedsnet_jax.training import train as trainer

PHANTOM, FOLDER, COVID = (
    f"--config={ROOT}/configs/{name}.py" for name in ("phantom", "folder", "covid")
)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`command(*flags, workdir=)` -> (exit code, stderr), in this process, with absl's
    flags fresh before each call.

    The workdir does not exist yet unless a test makes it.
    """
    # config files import one another
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", list(sys.argv))

    def call(*arguments: str, workdir: Path | None = tmp_path / "run"):
        absl_flags.forget()
        where = [f"--workdir={workdir}"] if workdir else []
        code = main.run(["biedsnet_jax", *arguments, *where])
        return code, capsys.readouterr().err

    yield call
    absl_flags.forget()


@pytest.fixture
def refused(command, tmp_path, monkeypatch):
    """`refused(*flags, says=)`: exit 2, one line that holds every part of `says`,
    nothing new under tmp_path.
    """

    def start(*_):
        pytest.fail("training began")

    monkeypatch.setattr(trainer, "_start", start)

    def check(*arguments: str, says: tuple[str, ...], **options):
        before = _contents(tmp_path)
        code, err = command(*arguments, **options)
        assert code == 2
        assert (
            err.startswith("biedsnet: ") and err.count("\n") == 1 and err.endswith("\n")
        ), err
        assert "Traceback" not in err
        for part in says:
            assert part in err
        assert _contents(tmp_path) == before

    return check


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def slices(root: Path, names=("a/1", "b/1", "c/1", "d/1"), size=32) -> Path:
    """A folder that fits: images of noise, masks of one square."""
    rng = np.random.default_rng(0)
    for name in names:
        mask = np.zeros((size, size), np.uint8)
        mask[4:12, 6:20] = 255
        for kind, pixels in (
            ("images", rng.integers(0, 255, (size, size)).astype(np.uint8)),
            ("masks", mask),
        ):
            path = root / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


# --- the flags themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            [PHANTOM, "--config.train.step=1"],
            ["train.step is not a field of the config.", "--config.train.steps\n"],
        ),
        (
            [PHANTOM, "--config.nonsense=1"],
            ["nonsense is not a field of the config.", "The nearest is --config."],
        ),
        (
            [PHANTOM, "--config.trian.batch_size", "4"],
            ["trian.batch_size", "--config.train.batch_size\n"],
        ),
        ([PHANTOM, "--noconfig.data.verfy"], ["data.verfy", "--config.data.verify\n"]),
        (
            [PHANTOM, "--config.train.steps=abc"],
            [
                "--config.train.steps is abc, of the wrong type. Give a value like ",
                ", of int.",
            ],
        ),
        (
            [PHANTOM, "--config.train.steps=1.5"],
            ["--config.train.steps is 1.5, of the wrong type."],
        ),
        (
            [PHANTOM, "--config.train.learning_rate=fast"],
            ["train.learning_rate is fast, of the wrong", "float"],
        ),
        (
            [PHANTOM, "--config.data.cache=perhaps"],
            ["--config.data.cache is perhaps, of the wrong", "bool"],
        ),
        (
            [PHANTOM, "--config.train=3"],
            ["--config.train is 3, but it is a section.", "--config.train.accumulate"],
        ),
        (
            [PHANTOM, "--config.networks.biedsnet.channels=(8, 'x')"],
            ["networks.biedsnet.channels is (8, 'x'). Use"],
        ),
        ([PHANTOM + ":unett"], ["biedsnet: unknown config variant, unett", "unet"]),
        ([PHANTOM + ":unet,row9"], ["biedsnet: unknown config variant, row9", "row1"]),
        (
            ["--config=configs/phantm.py"],
            [
                "--config names configs/phantm.py, which is no file.",
                "configs/phantom.py",
            ],
        ),
        (
            [f"--config={ROOT}/configs"],
            ["configs, which is no file. Give one such as configs/phantom.py"],
        ),
        (
            ["--config.train.steps=3"],
            ["--config is missing.", "--config=configs/phantom.py"],
        ),
        ([], ["--config is missing.", "--config=configs/phantom.py"]),
        ([PHANTOM, "--mode=evaluat"], ["--mode=evaluat", "evaluate"]),
        ([PHANTOM, "--wokdir=x"], ["wokdir", "workdir"]),
        ([PHANTOM, "stray"], ["stray is not a flag. Flags look like --name=value."]),
    ],
)
def test_a_flag_that_is_wrong(refused, arguments, says):
    refused(*arguments, says=says)


def test_the_fields_are_shown(capsys):
    absl_flags.forget()
    assert main.run(["biedsnet_jax", "--helpfields"]) == 0
    assert "  data.size = 256\n" in capsys.readouterr().out


def test_no_workdir(refused):
    refused(PHANTOM, says=["--workdir is missing. Give the folder"], workdir=None)


def test_a_config_file_that_fails(refused, tmp_path):
    bad = tmp_path / "bad.py"
    for text, says in (
        ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
    ):
        bad.write_text(text)
        refused(f"--config={bad}", says=[f"{bad} fails with {says}", "--debug"])


def test_debug_shows_the_traceback(command):
    with pytest.raises(BadInput, match="nonsense is not a field"):
        command(PHANTOM, "--config.nonsense=1", "--debug")


BEFORE = "Stopped by Ctrl-C. Nothing was trained yet. The same command begins where this one did."


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (Diverged("loss not finite"), 1, "biedsnet: loss not finite\n"),
        (BadInput("a, b; c"), 2, "biedsnet: a, b; c\n"),
        (KeyboardInterrupt(), 130, f"biedsnet: {BEFORE}\n"),
        (
            Preempted("Stopped by SIGTERM. Go on."),
            0,
            "biedsnet: Stopped by SIGTERM. Go on.\n",
        ),
        (
            Preempted("Stopped by Ctrl-C at 3.", 130),
            130,
            "biedsnet: Stopped by Ctrl-C at 3.\n",
        ),
        (
            Preempted("Stopped by SIGHUP at 3.", 129),
            129,
            "biedsnet: Stopped by SIGHUP at 3.\n",
        ),
    ],
)
def test_how_a_mode_that_stops_ends(command, monkeypatch, error, code, says):
    def train(*_):
        raise error

    monkeypatch.setattr(trainer, "train", train)
    assert command(PHANTOM) == (code, says)


# --- the data --------------------------------------------------------------------------------------------------------


def test_the_papers_data_without_data(refused, tmp_path):
    says = [
        "zenodo.org/records/3757476",
        "DIR/images/",
        "DIR/masks/",
        "--config.data.root=DIR",
        "configs/phantom.py",
    ]
    refused(COVID, says=["no data folder", "data.root", *says])
    refused(
        COVID,
        f"--config.data.root={tmp_path}/gone",
        says=["no such folder", f"{tmp_path}/gone", *says],
    )


def test_no_images(refused, tmp_path):
    (tmp_path / "data" / "masks").mkdir(parents=True)
    data = f"--config.data.root={tmp_path}/data"
    refused(FOLDER, data, says=["no such folder, images", f"{tmp_path}/data/images"])
    (tmp_path / "data" / "images").mkdir()
    refused(FOLDER, data, says=["no images", f"{tmp_path}/data/images"])


def _remove(data: Path):
    (data / "masks" / "b" / "1.png").unlink()


def _remove_image(data: Path):
    (data / "images" / "b" / "1.png").unlink()


def _other_size(data: Path):
    Image.fromarray(np.zeros((32, 48), np.uint8)).save(data / "masks" / "b" / "1.png")


def _truncate(data: Path):
    path = data / "images" / "b" / "1.png"
    path.write_bytes(path.read_bytes()[:-200])


def _not_an_image(data: Path):
    (data / "masks" / "b" / "1.png").write_text("a mask")


def _third_value(data: Path):
    mask = np.zeros((32, 32), np.uint8)
    mask[0, :2] = 7, 9
    Image.fromarray(mask).save(data / "masks" / "b" / "1.png")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_remove, ["images without masks, 1 of 4", "images/b/1.png", "masks"]),
        (_remove_image, ["masks without images, 1 of 4", "masks/b/1.png", "images"]),
        (_other_size, ["differ in size, 32x32 against 32x48", "masks/b/1.png"]),
        (_truncate, ["unreadable or truncated", "images/b/1.png"]),
        (_not_an_image, ["unreadable or truncated", "masks/b/1.png"]),
        (_third_value, ["mask values, 0, 7, 9", "masks/b/1.png", "data.classes"]),
    ],
)
def test_a_file_that_does_not_fit(refused, tmp_path, damage, says):
    damage(slices(tmp_path / "data"))
    refused(FOLDER, f"--config.data.root={tmp_path}/data", says=says)


def test_more_labels_than_classes(refused, tmp_path):
    data = slices(tmp_path / "data")
    mask = np.zeros((32, 32), np.uint8)
    mask[0, :3] = 1, 2, 3
    for name in "abcd":
        Image.fromarray(mask).save(data / "masks" / name / "1.png")
    refused(
        FOLDER,
        f"--config.data.root={data}",
        "--config.data.classes=2",
        says=["0, 1, 2, 3", "labels 0 to 2"],
    )


def test_splits(refused, tmp_path):
    data = f"--config.data.root={slices(tmp_path / 'data')}"
    named = ("--config.split.train=a", "--config.split.train=b", "--config.split.val=c")
    refused(
        FOLDER,
        data,
        *named,
        "--config.split.test=b",
        says=["one case on two sides, b", "train", "test"],
    )
    refused(
        FOLDER, data, *named, "--config.split.test=7", says=["unknown case, 7", "test"]
    )
    refused(FOLDER, data, *named, says=["split.test names no case"])
    two = f"--config.data.root={slices(tmp_path / 'two', ['a/1', 'a/2', 'b/1'])}"
    refused(FOLDER, two, says=["too few cases, 2"])


# --- config, devices, workdir ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "--config.train.batch_size=12",
            ["train.batch_size", "12", "8 devices", "8 or 16"],
        ),
        (
            "--config.train.accumulate=2",
            ["train.batch_size", "16 parts (8 devices, train.accumulate=2)", "to 16"],
        ),
        (
            "--config.data.size=50",
            ["data.size 50", "48 or"],
        ),
        ("--config.network=unett", ["network is 'unett'. Use one of", "'unet'"]),
        ("--config.sampler.steps=0", ["sampler.steps"]),
        ("--config.data.phantom.n_cases=0", ["n_cases"]),
    ],
)
def test_a_value_that_cannot_be(refused, override, says):
    refused(PHANTOM, override, says=says)


def test_a_size_that_only_the_network_can_refuse(refused):
    refused(
        PHANTOM + ":swin_unet",
        "--config.data.size=40",
        says=["data.size 40", "16 or 32"],
    )


def test_weights_that_only_the_loss_can_refuse(refused):
    weights = "--config.loss.supervision_weights=(0.7, 0.3)"
    refused(
        PHANTOM,
        "--config.network=unetpp",
        weights,
        says=["loss.supervision_weights", "2 weights", "4 heads"],
    )


def phantom_config():
    absl_flags.forget()
    flags.FLAGS(["test", PHANTOM])
    return flags.FLAGS.config


def test_a_workdir_of_another_config(refused, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    run_config.save(phantom_config(), workdir / "config.json")
    said = f"train.learning_rate is {phantom_config().train.learning_rate} there and 0.123 here"
    for mode in ("train", "evaluate"):
        says = ["workdir of another config", said, str(workdir)]
        refused(
            PHANTOM, "--config.train.learning_rate=0.123", f"--mode={mode}", says=says
        )


def test_a_workdir_without_a_run(refused, tmp_path):
    refused(
        "--mode=evaluate", says=["no trained run", f"{tmp_path}/run", "train first"]
    )
    refused(
        "--mode=evaluate",
        PHANTOM,
        says=["no trained run", f"{tmp_path}/run", "train first"],
    )
    (tmp_path / "run").mkdir()
    refused(
        "--mode=evaluate",
        "--config.sampler.steps=2",
        says=["no trained run", "train first"],
    )
    run_config.save(phantom_config(), tmp_path / "run" / "config.json")
    refused(
        "--mode=evaluate",
        says=["no complete checkpoint", f"{tmp_path}/run/checkpoints", "--mode=train"],
    )


@pytest.mark.parametrize("cut", [slice(0, 100), slice(0, 0), slice(-20, None)])
def test_a_damaged_config_json(refused, tmp_path, cut):
    workdir = tmp_path / "run"
    workdir.mkdir()
    run_config.save(phantom_config(), workdir / "config.json")
    (workdir / "config.json").write_text((workdir / "config.json").read_text()[cut])
    for arguments in ([], ["--mode=evaluate"], [PHANTOM]):
        refused(*arguments, says=["damaged config", f"{workdir}/config.json"])


def test_a_config_json_without_a_section(refused, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    fields = json.loads(phantom_config().to_json_best_effort())
    del fields["sampler"]
    (workdir / "config.json").write_text(json.dumps(fields))
    refused(
        "--mode=evaluate",
        says=["config.json has no section sampler. Restore it from a copy"],
    )


def test_a_workdir_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(
        PHANTOM,
        says=[f"{tmp_path}/file/run", "--workdir"],
        workdir=tmp_path / "file" / "run",
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["--config is missing.", "--config=configs/phantom.py"]),
        ([PHANTOM, "--repeats=0"], ["too few repeats, 0, in --repeats", "7"]),
        ([PHANTOM, "--repeats=many"], ["--repeats=many"]),
        (
            [PHANTOM, "--config.train.batch_size=12"],
            ["train.batch_size", "12", "8 devices"],
        ),
        ([PHANTOM, f"--output={ROOT}"], ["a folder", "in --output", "bench.json"]),
        (
            [PHANTOM, f"--output={ROOT}/gone/bench.json"],
            ["no such folder", "in --output"],
        ),
        (
            [PHANTOM, "--output=/dev/null"],
            ["/dev/null cannot be written", "a device or a pipe", "another --output"],
        ),
        (
            [PHANTOM, "--output=/sys/kernel/bench.json"],
            ["/sys/kernel/bench.json cannot be written", "--output"],
        ),
        (
            [PHANTOM, f"--compare={ROOT}/gone.json"],
            ["no baseline, No such file", "gone.json", "in --compare"],
        ),
        (
            [PHANTOM, f"--compare={ROOT}/README.md"],
            ["no benchmark's result, or damaged", "README.md"],
        ),
    ],
)
def test_a_benchmark_that_cannot_be_needs_no_workdir_to_say_so(
    refused, arguments, says
):
    refused("--mode=benchmark", *arguments, says=says, workdir=None)


# --- as a process ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config=configs/covid.py:cpu"], "zenodo.org/records/3757476"),
        (
            ["--config=configs/phantom.py:row1", "--config.sampler.step=2"],
            "--config.sampler.steps",
        ),
    ],
)
def test_the_real_command(tmp_path, arguments, says):
    line = [
        sys.executable,
        "-m",
        "biedsnet_jax.main",
        *arguments,
        f"--workdir={tmp_path}/run",
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith("biedsnet: ")
        and done.stderr.count("\n") == 1
        and says in done.stderr
    )
    assert list(tmp_path.iterdir()) == []
