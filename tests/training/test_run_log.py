"""The logs of a run: `metrics.jsonl` through kills and restarts, TensorBoard's records."""

import errno
import io
import json
import math
import os
import resource
import struct

import numpy as np
import pytest
from PIL import Image
from refusals import refused
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

from biedsnet_jax.runtime import files, tensorboard
from biedsnet_jax.training.run_log import RunLog


def lines(folder) -> list[dict]:
    text = (folder / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    # Strict JSON has no NaN.
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def write(folder, steps, *, start=0, to_tensorboard=False, **scalars):
    with RunLog(folder, step=start, to_tensorboard=to_tensorboard) as log:
        for step in steps:
            log.write(step, {"loss": 1.0 / step, **scalars})


def events(folder) -> list:
    """Every event of every file, the older file first.

    Reads TFRecord by its definition: length, CRC, data, CRC.
    """
    found = []
    for path in sorted(
        (folder / "tensorboard").glob("events.out.tfevents.*"),
        key=lambda path: path.stat().st_mtime_ns,
    ):
        stream = io.BytesIO(path.read_bytes())
        while head := stream.read(12):
            (length,) = struct.unpack("<Q", head[:8])
            data, (crc,) = stream.read(length), struct.unpack("<I", stream.read(4))
            value = crc32c(data)
            assert crc == ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
            found.append(event_pb2.Event.FromString(data))
    return found


# --- metrics.jsonl --------------------------------------------------------------------


def test_a_line_a_step_with_the_time(tmp_path):
    write(tmp_path, (1, 2), bad_steps=0)
    first, second = lines(tmp_path)
    assert (first["step"], first["loss"], first["bad_steps"]) == (1, 1.0, 0)
    assert (second["step"], second["loss"]) == (2, 0.5)
    assert second["time"] >= first["time"] > 1.6e9
    # TensorBoard's files are written only if asked for.
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_number_that_is_not_finite_is_null(tmp_path):
    write(tmp_path, [1], a=math.nan, b=math.inf, c=-math.inf, d=2)
    (line,) = lines(tmp_path)
    assert (line["a"], line["b"], line["c"], line["d"]) == (None, None, None, 2)


def test_going_on_drops_what_came_after_the_checkpoint_and_the_line_cut_by_a_kill(
    tmp_path,
):
    write(tmp_path, range(1, 6))
    whole = (tmp_path / "metrics.jsonl").read_text()
    for cut in ("", '{"step": 6, "ti', '{"step": 6}', "6", '{"time": 3}\n{"step'):
        (tmp_path / "metrics.jsonl").write_text(whole + cut)
        write(tmp_path, (4, 5), start=3, again=True)
        assert [(line["step"], line.get("again", False)) for line in lines(tmp_path)] == [
            (1, False), (2, False), (3, False), (4, True), (5, True)
        ]  # fmt: skip
    kept = whole.splitlines()[:3]
    # Lines that stay are not written anew, time included.
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:3] == kept


@pytest.mark.parametrize(
    "tail",
    [
        b"\0" * 4096,
        b"\xff\xfe\x80garbage\n",
        b'{"step": 2, "lo' + b"\0" * 50 + b"\n",
        b'{"step": [1]}\n{"step": "1"}\nnull\n[]\n',
        b"[" * 100_000 + b"\n",
        b'{"step": 1, "name": "a\xe2\x80\xa8b"}\n',
    ],
)
def test_what_a_power_cut_leaves_of_a_line_is_dropped_and_the_rest_stays(
    tmp_path, tail
):
    write(tmp_path, (1, 2))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    write(tmp_path, (3,), start=2)
    found = path.read_bytes()
    assert found.startswith(whole)
    # A whole line stays, whatever character stands in it.
    steps = [1, 2, 1, 3] if tail.endswith(b'b"}\n') else [1, 2, 3]
    assert [json.loads(line)["step"] for line in found.split(b"\n")[:-1]] == steps


def test_a_file_that_cannot_be_read_at_the_start_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    refused(lambda: write(tmp_path, [1]), tmp_path / "metrics.jsonl", "Is a directory")


def test_lines_of_the_checkpoints_own_step_stay(tmp_path):
    with RunLog(tmp_path, step=0, to_tensorboard=False) as log:
        log.write(2, {"loss": 0.5})
        log.write(2, {"val_dice": 0.25})
    write(tmp_path, [], start=2)
    assert [line.get("val_dice") for line in lines(tmp_path)] == [None, 0.25]


def test_a_new_start_in_an_old_folder_is_an_empty_log(tmp_path):
    write(tmp_path, (1, 2))
    write(tmp_path, [], start=0)
    assert lines(tmp_path) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [
        path
    ]


@pytest.mark.parametrize("room", [0, 5])
def test_a_full_disk_costs_lines_and_is_warned_of_once(tmp_path, capsys, room):
    """A file may grow by `room` bytes, which looks like a full disk to its writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLog(tmp_path, step=0, to_tensorboard=True) as log:
        log.write(1, {"loss": 1.0})
        size = (tmp_path / "metrics.jsonl").stat().st_size + room
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            log.write(2, {"loss": 1.0})
            log.write(3, {"loss": 1.0})
            log.panel(3, *[np.zeros((1, 2, 2, 1), np.float32)] * 3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.write(4, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 4]
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line and "step 2 " in line


def test_a_folder_that_vanishes_is_an_error(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with RunLog(folder, step=0, to_tensorboard=True) as log:
        log.write(1, {"loss": 1.0})
        folder.rename(tmp_path / "elsewhere")
        refused(lambda: log.write(2, {"loss": 1.0}), "is gone, at step 2", str(folder))
        # Another folder of the same name is not the run's either.
        folder.mkdir()
        refused(lambda: log.write(3, {"loss": 1.0}), "is gone, at step 3", str(folder))


# --- TensorBoard ----------------------------------------------------------------------


def test_scalars_and_the_panel_are_in_the_event_file(tmp_path):
    image = np.zeros((2, 4, 3, 1), np.float32)
    # Slice 0 is flat, slice 1 has a single dark pixel.
    image[0, ..., 0], image[1, 0, 0, 0] = 7.0, -5.0
    truth = np.zeros((2, 4, 3, 2), np.float32)
    truth[1, :, :, 1] = 1.0
    probability = np.zeros((2, 4, 3, 2), np.float32)
    probability[0, 2, 1, 0] = 0.5
    with RunLog(tmp_path, step=0, to_tensorboard=True) as log:
        log.write(3, {"loss": 0.75, "train_dice": 0.125})
        log.panel(4, image, truth, probability)
    values = [
        (event.step, value)
        for event in events(tmp_path)
        for value in event.summary.value
    ]
    scalars = [
        (step, value.tag, value.simple_value)
        for step, value in values
        if value.HasField("simple_value")
    ]
    assert scalars == [(3, "loss", 0.75), (3, "train_dice", 0.125)]
    ((step, picture),) = [
        (step, value) for step, value in values if value.HasField("image")
    ]
    assert (step, picture.tag) == (4, "validation")
    pixels = np.asarray(
        Image.open(io.BytesIO(picture.image.encoded_image_string)).convert("L")
    )
    # A row a slice and class: image, truth, probability.
    assert pixels.shape == (2 * 2 * 4, 3 * 3)
    expected = np.zeros((16, 9), np.uint8)
    # Slice 0, class 1: a probability of one half.
    expected[2, 7] = 127
    # Slice 1, both classes: grey is stretched from the dark pixel to the rest.
    expected[8:, :3] = 255
    expected[[8, 12], 0] = 0
    # Slice 1, class 2: truth.
    expected[12:, 3:6] = 255
    np.testing.assert_allclose(pixels.astype(int), expected, atol=1)


def test_going_on_marks_the_steps_that_no_longer_count(tmp_path):
    write(tmp_path, (1, 2, 3), to_tensorboard=True)
    write(tmp_path, (3,), start=2, to_tensorboard=True)
    steps = [event.step for event in events(tmp_path) if event.summary.value]
    assert steps == [1, 2, 3, 3]
    marks = [
        event.step
        for event in events(tmp_path)
        if event.session_log.status == event_pb2.SessionLog.START
    ]
    # TensorBoard then drops what earlier files have from this step on.
    assert marks[-1] == 3


def test_without_tensorboard_a_panel_is_nothing(tmp_path):
    with RunLog(tmp_path, step=0, to_tensorboard=False) as log:
        log.panel(1, *[np.zeros((1, 2, 2, 1), np.float32)] * 3)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_of_curves_would_be_is_refused(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    refused(
        lambda: write(tmp_path, [1], to_tensorboard=True),
        tmp_path / "tensorboard",
        "File exists",
    )


def test_a_disk_that_is_full_at_the_start_costs_the_curves_and_not_the_run(
    tmp_path, monkeypatch, capsys
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensorboard, "Board", full)
    write(tmp_path, [1], to_tensorboard=True)
    assert [line["step"] for line in lines(tmp_path)] == [1]
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line and "step 0 " in line
