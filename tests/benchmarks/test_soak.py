"""The soak's own parts, and one kill of a toy run; power cuts, and a few of them."""

import json
import os
import random
import signal
import types

import pytest

from benchmarks.soak import damage, kills, power, soak
from benchmarks.soak.run import Ended, Moment, Run, last_step, went_from, write_pictures
from biedsnet_jax.runtime import files

PARAMETERS = "train 9 slices of 3 cases, val 3 of 1, test 6 of 2\n1,234 parameters"


def ended(**fields) -> Ended:
    usual = {
        "code": -9,
        "signal": "SIGKILL",
        "finished": False,
        "before": None,
        "from_step": 0,
        "err": "",
    }
    return Ended(**(usual | fields))


def test_the_signals_are_as_many_as_asked_and_the_same_for_a_seed():
    first, second = (
        soak.shuffled(random.Random(3), kills=40, terms=10) for _ in range(2)
    )
    assert (
        first == second
        and sorted(first) == ["SIGKILL"] * 40 + ["SIGTERM"] * 10
        and first != sorted(first)
    )


@pytest.mark.parametrize(
    ("gradient", "noise"), [(0.0, 0.0), (0.25, 0.0), (-3.0, 0.0), (0.01, 1.0)]
)
def test_slope_is_that_of_the_line(gradient, noise):
    # Noise of alternating sign, symmetric about the middle, has no slope of its own.
    points = [(x, 7 + gradient * x + noise * (-1) ** x) for x in range(101)]
    assert soak.slope(points) == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("out", "step"),
    [
        ("", None),
        (f"{PARAMETERS}\n", 0),
        (f"{PARAMETERS}\ngoing on from step 40\n", 40),
        ("parameters\n", None),
    ],
)
def test_where_a_start_went_on_from(out, step):
    assert went_from(out) == step


def test_the_last_step_is_of_a_whole_line(tmp_path):
    assert last_step(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 1.0}\n{"step": 6, "lo'
    )
    assert last_step(tmp_path) == 4


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "went on"),
        ({"from_step": None}, "killed early"),
        ({"err": "biedsnet: warning: damaged checkpoint\n"}, "went on, with a warning"),
        ({"code": 2, "signal": None, "err": "biedsnet: unreadable file\n"}, "refused"),
        (
            {
                "code": 2,
                "signal": None,
                "err": "biedsnet: warning: full\nbiedsnet: unreadable\n",
            },
            "refused",
        ),
        ({"code": 2, "signal": None, "err": "what?\n"}, "refused in 0 lines"),
        (
            {"code": 1, "signal": None, "err": "Traceback (most recent call last)\n"},
            "traceback",
        ),
        ({"code": -11, "signal": None}, "exit code -11"),
        ({"code": 0, "signal": None, "finished": True}, "went on"),
        # It ended without results, though no signal was sent.
        ({"code": 0, "signal": None}, "exit code 0"),
        ({"code": 0, "signal": "SIGTERM"}, "went on"),
        # It ignored the SIGTERM and was killed in the end.
        ({"code": -9, "signal": "SIGTERM"}, "exit code -9 after SIGTERM"),
    ],
)
def test_outcomes(fields, word):
    assert kills.outcome(ended(**fields)) == word


def test_a_kill_is_survived_once_a_later_start_goes_on(tmp_path):
    run = types.SimpleNamespace(
        data=tmp_path, final_bits=lambda workdir: {"a": b"1"}, expected={"a": b"1"}
    )
    killed = kills.Soak(
        run, random.Random(0), damage.Disk(tmp_path, False, "none"), 1.0
    )
    starts = [
        ended(before=None),
        ended(from_step=None),
        ended(before=12, from_step=8),
        ended(from_step=None),
    ]
    for one in starts:
        killed.judge(one, damage.NONE)
        killed.waiting += 1
    assert killed.survived == 2 and killed.waiting == 2 and killed.lost == [0, 4]
    killed.judge(
        ended(code=0, signal=None, finished=True, before=14, from_step=12), damage.NONE
    )
    assert killed.survived == 4 and killed.same == [True] and not killed.failures
    run.final_bits = lambda workdir: {"a": b"2"}
    killed.judge(ended(code=0, signal=None, finished=True), damage.NONE)
    assert killed.same == [True, False]


def test_a_refusal_is_a_failure_unless_something_of_the_users_is_broken(tmp_path):
    killed = kills.Soak(
        None, random.Random(0), damage.Disk(tmp_path, False, "none"), 1.0
    )
    refusal = ended(
        code=2, signal=None, from_step=None, err="biedsnet: FILE is broken. Mend it.\n"
    )
    killed.judge(refusal, damage.Damage("picture cut", temporary=True))
    assert not killed.failures and kills.tally(killed.damages) == {
        "picture cut": {"refused": 1}
    }
    killed.judge(refusal, damage.Damage("file of the latest checkpoint cut"))
    # Another run begins, since every further start would be refused.
    assert len(killed.failures) == 1 and killed.round == 1


def test_spoilt_files_differ_and_pictures_are_mended(tmp_path):
    rng, ways = random.Random(0), set()
    for _ in range(20):
        path = tmp_path / "file"
        path.write_bytes(b"0123456789")
        ways.add(how := damage.spoil(rng, path))
        left = path.read_bytes() if path.exists() else None
        assert (left is None) == (how == "gone") and left != b"0123456789"
    assert ways == {"cut", "changed", "gone"}
    write_pictures(tmp_path / "data")
    before = {
        path: path.read_bytes() for path in sorted((tmp_path / "data").rglob("*.png"))
    }
    assert len(before) == 36
    spoilt = damage.data_file(rng, tmp_path, tmp_path / "data", None)
    after = {path: path.exists() and path.read_bytes() for path in before}
    assert sum(before[path] != after[path] for path in before) == 1
    spoilt.mend()
    assert {path: path.read_bytes() for path in before} == before


def test_only_the_latest_of_several_checkpoints_is_spoilt(tmp_path):
    for step in ("9", "10"):
        assert (
            damage.checkpoint_file(random.Random(0), tmp_path, None, None)
            is damage.NONE
        )
        folder = tmp_path / "checkpoints" / step / "state"
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(b"0123456789")
    (tmp_path / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir()
    done = damage.checkpoint_file(random.Random(0), tmp_path, None, None)
    assert done.what.startswith("file of the latest checkpoint")
    kept, spoilt = (
        tmp_path / "checkpoints" / step / "state" / "data" for step in ("9", "10")
    )
    assert kept.read_bytes() == b"0123456789" and not (
        spoilt.exists() and spoilt.read_bytes() == b"0123456789"
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A run of 20 steps that keeps a journal, and what an unbroken one ends in."""
    folder = tmp_path_factory.mktemp("soak")
    run = power.PoweredRun(
        folder, steps=20, more={"eval.every": 10, "checkpoint.every": 4}
    )
    write_pictures(run.data)
    assert run.start(folder / "whole").end(None, None).finished
    run.expected = run.final_bits(folder / "whole")
    return run


@pytest.mark.slow
def test_a_toy_run_that_is_killed_ends_in_the_same_bits(tmp_path, toy):
    run = Run(toy.folder, steps=20, more={"eval.every": 10, "checkpoint.every": 4})
    started = run.start(tmp_path / "run")
    while not (last_step(tmp_path / "run") or 0) >= 6:
        assert started.process.poll() is None
    started.process.send_signal(signal.SIGKILL)
    assert started.end(None, None).code == -9
    again = run.start(tmp_path / "run").end(None, None)
    assert again.finished and again.before >= 6 and again.from_step >= 0
    assert run.final_bits(tmp_path / "run") == toy.expected


# --- power cuts -----------------------------------------------------------------------------------


def test_what_was_brought_to_the_disk_is_safe_and_nothing_else(tmp_path, monkeypatch):
    journal, folder = tmp_path / "journal", tmp_path / "run"
    folder.mkdir()
    # put back after the test
    monkeypatch.setattr(os, "fsync", os.fsync)
    power.note_fsync(journal)
    for name in ("safe", "written again", "appended", "never"):
        (folder / name).write_text(name)
        if name != "never":
            files.sync(folder / name)
    files.sync_folder(folder)
    files.write_text(folder / "whole", "whole")
    (folder / "late").write_text("late")
    (folder / "written again").write_text("otherwise")
    with (folder / "appended").open("a") as file:
        file.write("more")
    files_there, folders = power.read(journal)
    safe = {path.name for path in folder.iterdir() if power.is_safe(path, files_there)}
    assert safe == {"safe", "whole"}
    assert [path.name for path in power.unsafe_names(folder, folders)] == ["late"]


def test_a_cut_changes_what_is_not_safe_and_no_more(tmp_path):
    journal = tmp_path / "journal"
    safe, unsafe = tmp_path / "run" / "safe", tmp_path / "run" / "unsafe"
    ends, gone = set(), 0
    for seed in range(40):
        safe.parent.mkdir(exist_ok=True)
        for path in (safe, unsafe):
            path.write_bytes(bytes(range(1, 101)))
        status = safe.stat()
        entry = {"inode": status.st_ino, "size": 100, "time": status.st_mtime_ns}
        names = {"inode": safe.parent.stat().st_ino, "names": ["safe"]}
        journal.write_text(
            json.dumps(entry) + "\n" + json.dumps(names) + '\n{"inode": 1'
        )
        power.cut(random.Random(seed), [tmp_path / "run"], journal)
        assert safe.read_bytes() == bytes(range(1, 101))
        if not unsafe.exists():
            gone += 1
            continue
        data = unsafe.read_bytes()
        kept = data.rstrip(b"\0")
        assert kept == bytes(range(1, 101))[: len(kept)] and len(data) in (
            len(kept),
            100,
        )
        ends.add(
            "zeroed"
            if len(data) > len(kept)
            else "cut"
            if len(data) < 100
            else "spared"
        )
    assert ends == {"zeroed", "cut", "spared"} and 5 < gone < 35


@pytest.mark.slow
def test_a_power_cut_ends_in_the_same_bits(tmp_path, toy):
    """The kill comes after a checkpoint was due; what was not on the disk is lost or
    spoilt.
    """
    started = toy.start(tmp_path / "run")
    assert not started.wait_for(Moment(0.0, new_steps=6))
    assert started.end(Moment(0.0), "SIGKILL").code == -9
    caches = toy.fields["compile_cache"]
    power.cut(random.Random(0), [tmp_path / "run", caches], toy.journal)
    again = toy.start(tmp_path / "run").end(None, None)
    assert again.finished, again.err
    assert toy.final_bits(tmp_path / "run") == toy.expected


@pytest.mark.slow
def test_images_of_a_run_go_on_from_a_good_state(tmp_path, toy):
    """Power cuts at many moments of one run, each opened as a start opens it."""
    more = {"eval.every": 0, "checkpoint.every": 4}
    run = power.PoweredRun(toy.folder, steps=100, more=more)
    report = power.images(run, random.Random(2), 3)
    assert report["good"] == report["power_cuts"] == 3, report
