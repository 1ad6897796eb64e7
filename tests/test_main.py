"""A mistake on the command line is one line that names what, where and the fix.

It goes to stderr, and nothing is written.
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
    """`command(*flags, workdir=)` gives (exit code, stderr) of main in this process.

    absl's flags are fresh before each call. The workdir is not there unless a test
    makes it.
    """
    # Config files import one another.
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
def refused(command, tmp_path):
    """`refused(*flags, says=)` checks that a command is refused with exit code 2.

    Its one line holds every part of `says`, and nothing is new under tmp_path.
    """

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


# --- the flags themselves ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            [PHANTOM, "--config.train.step=1"],
            ["train.step ", "--config.train.steps\n"],
        ),
        (
            [PHANTOM, "--config.nonsense=1"],
            ["nonsense ", "--config."],
        ),
        (
            [PHANTOM, "--config.trian.batch_size", "4"],
            ["trian.batch_size", "--config.train.batch_size\n"],
        ),
        ([PHANTOM, "--noconfig.data.verfy"], ["data.verfy", "--config.data.verify\n"]),
        (
            [PHANTOM, "--config.train.steps=abc"],
            ["--config.train.steps is abc,", " int."],
        ),
        (
            [PHANTOM, "--config.train.steps=1.5"],
            ["--config.train.steps is 1.5,", " int."],
        ),
        (
            [PHANTOM, "--config.train.learning_rate=fast"],
            ["--config.train.learning_rate is fast,", "float"],
        ),
        (
            [PHANTOM, "--config.data.cache=perhaps"],
            ["--config.data.cache is perhaps,", "bool"],
        ),
        (
            [PHANTOM, "--config.train=3"],
            ["--config.train is 3,", "--config.train.accumulate"],
        ),
        (
            [PHANTOM, "--config.networks.biedsnet.channels=(8, 'x')"],
            ["networks.biedsnet.channels", "(8, 'x')"],
        ),
        ([PHANTOM + ":unett"], ["unett", "unet"]),
        ([PHANTOM + ":unet,row9"], ["row9", "row1"]),
        (
            ["--config=configs/phantm.py"],
            ["--config", "configs/phantm.py", "phantom"],
        ),
        (
            [f"--config={ROOT}/configs"],
            [f"{ROOT}/configs", "phantom"],
        ),
        (
            ["--config.train.steps=3"],
            ["--config=phantom"],
        ),
        ([], ["--config=phantom"]),
        ([PHANTOM, "--mode=evaluat"], ["--mode=evaluat", "evaluate"]),
        ([PHANTOM, "--wokdir=x"], ["wokdir", "workdir"]),
        ([PHANTOM, "stray"], ["stray ", "--name=value"]),
    ],
)
def test_a_flag_that_is_wrong(refused, arguments, says):
    refused(*arguments, says=says)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("data.ignore=#ff00", ["data.ignore is '#ff00'", "'#ff0000'"]),
        ("data.ignore=0", ["data.ignore is '0'", "'65535'"]),
        ("data.spacing=0.8mm", ["data.spacing is '0.8mm'", '"0.8,0.7"']),
        ("data.fit=crop", ["data.fit is 'crop'", "'tile'"]),
        ("data.unannotated=(('a', 2),)", ["data.unannotated is (('a', 2),)", "cases"]),
        ("data.class_names=('a', 'b')", ["data.class_names has 2 names", "each class"]),
        ("postprocess=maybe", ["--config.postprocess is maybe", "bool"]),
        ("init.freeze=('x',)", ["init.freeze is ('x',)", "init.source"]),
        ("sampler.mirror=up", ["sampler.mirror is 'up'", "'lr,ud'"]),
    ],
)
def test_a_field_of_the_data_or_the_weights_that_is_wrong(refused, flag, says):
    refused(FOLDER, f"--config.{flag}", says=says)


@pytest.mark.parametrize("ignore", ["#ff0000", "255"])
def test_a_colour_and_a_label_to_ignore_come_as_they_were_typed(
    command, monkeypatch, ignore
):
    seen = []
    monkeypatch.setattr(trainer, "train", lambda cfg, workdir: seen.append(cfg))
    code, err = command(FOLDER, f"--config.data.ignore={ignore}")
    assert (code, err) == (0, "")
    assert [cfg.data.ignore for cfg in seen] == [ignore]


def test_the_fields_are_shown(capsys):
    absl_flags.forget()
    assert main.run(["biedsnet_jax", "--helpfields"]) == 0
    assert "  data.size = 256\n" in capsys.readouterr().out


def test_no_workdir(refused):
    refused(PHANTOM, says=["--workdir"], workdir=None)


def test_a_config_file_that_fails(refused, tmp_path):
    bad = tmp_path / "bad.py"
    for text, says in (
        ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
    ):
        bad.write_text(text)
        refused(f"--config={bad}", says=[str(bad), says, "--debug"])


def test_debug_shows_the_traceback(command):
    with pytest.raises(BadInput, match="nonsense"):
        command(PHANTOM, "--config.nonsense=1", "--debug")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (Diverged("loss not finite"), 1, "biedsnet: loss not finite\n"),
        (BadInput("A is B. Give C."), 2, "biedsnet: A is B. Give C.\n"),
        (Preempted("Stopped at 2."), 0, "biedsnet: Stopped at 2.\n"),
        (Preempted("Stopped at 3.", 130), 130, "biedsnet: Stopped at 3.\n"),
    ],
)
def test_how_a_mode_that_stops_ends(command, monkeypatch, error, code, says):
    def train(*_):
        raise error

    monkeypatch.setattr(trainer, "train", train)
    assert command(PHANTOM) == (code, says)


def test_ctrl_c_before_the_training_is_one_line(command, monkeypatch):
    def train(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train", train)
    code, err = command(PHANTOM)
    assert code == 130
    assert err.startswith("biedsnet: ") and "Ctrl-C" in err and err.count("\n") == 1


# --- the data ---


def test_the_papers_data_without_data(refused, tmp_path):
    says = [
        "zenodo.org/records/3757476",
        "DIR/images/",
        "DIR/masks/",
        "--config.data.root=DIR",
        "configs/phantom.py",
    ]
    refused(COVID, says=["data.root", *says])
    refused(
        COVID,
        f"--config.data.root={tmp_path}/gone",
        says=[f"{tmp_path}/gone", *says],
    )


def test_no_images(refused, tmp_path):
    (tmp_path / "data" / "masks").mkdir(parents=True)
    data = f"--config.data.root={tmp_path}/data"
    refused(FOLDER, data, says=[f"{tmp_path}/data/images"])
    (tmp_path / "data" / "images").mkdir()
    refused(FOLDER, data, says=[f"{tmp_path}/data/images"])


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
        (_remove, ["1 of 4", "images/b/1.png", "masks"]),
        (_remove_image, ["1 of 4", "masks/b/1.png", "images"]),
        (_other_size, ["32x32", "32x48", "masks/b/1.png"]),
        (_truncate, ["images/b/1.png"]),
        (_not_an_image, ["masks/b/1.png"]),
        (_third_value, ["0, 7, 9", "masks/b/1.png", "data.classes"]),
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
        says=["0, 1, 2, 3", "0 to 2"],
    )


def test_splits(refused, tmp_path):
    data = f"--config.data.root={slices(tmp_path / 'data')}"
    named = ("--config.split.train=a", "--config.split.train=b", "--config.split.val=c")
    refused(
        FOLDER,
        data,
        *named,
        "--config.split.test=b",
        says=[" b", "train", "test"],
    )
    refused(FOLDER, data, *named, "--config.split.test=7", says=["7", "test"])
    refused(FOLDER, data, *named, says=["split.test"])
    two = f"--config.data.root={slices(tmp_path / 'two', ['a/1', 'a/2', 'b/1'])}"
    refused(FOLDER, two, says=["2", "few"])


# --- config, devices, workdir ---


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "--config.train.batch_size=12",
            ["train.batch_size", "12", "8 devices", "8 or 16"],
        ),
        (
            "--config.train.accumulate=2",
            ["train.batch_size", "8", "accumulate=2", "16"],
        ),
        (
            "--config.data.size=50",
            ["data.size", "50", "48 or"],
        ),
        ("--config.network=unett", ["network", "'unett'", "'unet'"]),
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
        says=["data.size", "40", "16 or 32"],
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
    rate = str(phantom_config().train.learning_rate)
    other = "--config.train.learning_rate=0.123"
    for mode in ("train", "evaluate"):
        says = ["train.learning_rate", rate, "0.123", str(workdir)]
        refused(PHANTOM, other, f"--mode={mode}", says=says)


def test_a_workdir_without_a_run(refused, tmp_path):
    run = f"{tmp_path}/run"
    refused("--mode=evaluate", says=[run])
    refused("--mode=evaluate", PHANTOM, says=[run])
    (tmp_path / "run").mkdir()
    refused("--mode=evaluate", "--config.sampler.steps=2", says=[run])
    run_config.save(phantom_config(), tmp_path / "run" / "config.json")
    refused("--mode=evaluate", says=[f"{run}/checkpoints", "--mode=train"])


@pytest.mark.parametrize("cut", [slice(0, 100), slice(0, 0), slice(-20, None)])
def test_a_damaged_config_json(refused, tmp_path, cut):
    workdir = tmp_path / "run"
    workdir.mkdir()
    run_config.save(phantom_config(), workdir / "config.json")
    (workdir / "config.json").write_text((workdir / "config.json").read_text()[cut])
    for arguments in ([], ["--mode=evaluate"], [PHANTOM]):
        refused(*arguments, says=[f"{workdir}/config.json"])


def test_a_config_json_without_a_section(refused, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    fields = json.loads(phantom_config().to_json_best_effort())
    del fields["sampler"]
    (workdir / "config.json").write_text(json.dumps(fields))
    refused("--mode=evaluate", says=["config.json", "sampler"])


def test_a_workdir_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(
        PHANTOM + ":unet",
        says=[f"{tmp_path}/file/run"],
        workdir=tmp_path / "file" / "run",
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["--config=phantom"]),
        ([PHANTOM, "--repeats=0"], ["--repeats", "0", "7"]),
        ([PHANTOM, "--repeats=many"], ["--repeats=many"]),
        (
            [PHANTOM, "--config.train.batch_size=12"],
            ["train.batch_size", "12", "8 devices"],
        ),
        ([PHANTOM, f"--output={ROOT}"], ["--output", str(ROOT), "bench.json"]),
        (
            [PHANTOM, f"--output={ROOT}/gone/bench.json"],
            ["--output", f"{ROOT}/gone"],
        ),
        (
            [PHANTOM, "--output=/dev/null"],
            ["/dev/null", "--output"],
        ),
        (
            [PHANTOM, "--output=/sys/kernel/bench.json"],
            ["/sys/kernel/bench.json", "--output"],
        ),
        (
            [PHANTOM, f"--compare={ROOT}/gone.json"],
            ["gone.json", "--compare"],
        ),
        (
            [PHANTOM, f"--compare={ROOT}/README.md"],
            ["README.md"],
        ),
    ],
)
def test_a_benchmark_that_cannot_be_needs_no_workdir_to_say_so(
    refused, arguments, says
):
    refused("--mode=benchmark", *arguments, says=says, workdir=None)


# --- as a process ---


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
