"""Tests mode serve with a real server: downloads, queue, limits, load and signals.

The model is made up (bright_model.py), so that masks are known without training.
"""

import contextlib
import csv
import dataclasses
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from bright_model import SIZE, in_place, served, write_workdir
from PIL import Image
from refusals import refused

pytest.importorskip("starlette", reason="no starlette: pip install starlette uvicorn")
pytest.importorskip("uvicorn", reason="no uvicorn: pip install uvicorn")

import attack
import hostile_files as hostile
from places import ROOT

from benchmarks.serving import load
from benchmarks.serving.uploads import SECRET, others, scans
from biedsnet_jax.config import run_config
from biedsnet_jax.prediction import predict, predictor
from biedsnet_jax.serving import serve
from biedsnet_jax.serving.limits import Limits

LIMITS = Limits(upload=2**21, unpacked=2**24)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A trained run of the made-up model."""
    with in_place():
        yield write_workdir(tmp_path_factory.mktemp("runs") / "bright")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of the server's temporary files."""
    return tmp_path_factory.mktemp("tmp")


@pytest.fixture(scope="module")
def url(workdir, kept):
    """The address of a server."""
    with served(workdir, kept, LIMITS) as url:
        yield url
    assert list(kept.iterdir()) == []


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """The scans to upload, and the folder with each as a file."""
    folder = tmp_path_factory.mktemp("scans")
    return scans(folder), folder


@pytest.fixture(scope="module")
def known(workdir, uploads, tmp_path_factory):
    """The mask and rows that mode predict writes for each scan."""
    return load.expected(str(workdir), uploads[1], tmp_path_factory.mktemp("masks"))


def request(url, method, path, body=None):
    """Sends a request; returns the status and the content of the answer."""
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=120)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def get(url, path):
    """Returns what is at a path, which must be there."""
    status, content = request(url, "GET", path)
    assert status == 200, content
    return content


def ended(url, content, like=""):
    """Uploads a file and waits; returns the path of the job and its last state."""
    status, answer = request(url, "POST", f"/jobs?like={like}", content)
    assert status == 202, answer
    path = f"/jobs/{json.loads(answer)['id']}"
    now = {"state": "waiting"}
    while now["state"] in ("waiting", "running"):
        now = json.loads(get(url, path))
    return path, now


@pytest.mark.slow
def test_downloads_are_what_mode_predict_writes(url, uploads, known):
    for upload in uploads[0]:
        job, now = ended(url, upload.content)
        assert now["state"] == "done", now["text"]
        mask, rows = known[upload.name]
        assert get(url, f"{job}/mask") == mask
        assert len(mask) > 50
        summary = io.StringIO(get(url, f"{job}/summary").decode())
        found = list(csv.DictReader(summary))
        assert {(row["name"], row["file"]) for row in found} == {("scan", "")}
        for row, expected in zip(found, rows, strict=True):
            own = {name: expected[name] for name in ("name", "file", "seconds")}
            assert row | own == expected
        request(url, "DELETE", job)


def test_the_size_of_a_batch_is_that_of_mode_predict_alone(workdir):
    model = predictor.load(workdir)
    sizes = {1: 1, 2: 2, 3: 4, 8: 8, 9: 8, 100: 8}
    assert {
        slices: model.first_batch(slices, (SIZE, SIZE)) for slices in sizes
    } == sizes


def test_a_slice_has_the_planes_that_the_page_draws(url):
    # Of the size that the network sees, so that maps are not resized.
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    pixels[4:12, 6:14] = 200
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    job, now = ended(url, out.getvalue())
    facts = now["facts"]
    assert facts["slices"] == facts["classes"] == 1
    assert facts["height"] == facts["width"] == SIZE
    assert facts["samples"] == 2
    assert facts["maps"] == ["entropy", "mutual_information", "variance"]
    assert facts["aspect"] == 1
    content = zlib.decompress(get(url, f"{job}/slices/0"))
    planes = np.frombuffer(content, np.uint8).reshape(7, SIZE, SIZE)
    np.testing.assert_array_equal(planes[0], np.where(pixels, 255, 0))
    written = np.asarray(Image.open(io.BytesIO(get(url, f"{job}/mask"))))
    np.testing.assert_array_equal(planes[1] > facts["level"], written == 255)
    # The probability is the mean of the samples, in steps of 1/200.
    assert (planes[5:].mean(axis=0) - planes[1] < 2).all()
    p = planes[1] / facts["levels"]
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    np.testing.assert_allclose(planes[2] / 255, entropy, atol=0.05)
    variance = (planes[5] / 200 - p) ** 2
    np.testing.assert_allclose(planes[4] / 255 * 0.25, variance, atol=0.002)
    request(url, "DELETE", job)


def test_several_workdirs_are_served_as_one_model(workdir, kept, tmp_path):
    other = write_workdir(tmp_path / "other", above=0.3)
    pixels = np.tile(np.arange(SIZE, dtype=np.uint8) * 16, (SIZE, 1))
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    both = f"{workdir},{other}"
    cfg = run_config.load(workdir)
    predict.run(cfg, both, str(tmp_path / "in"), str(tmp_path / "out"))
    with served([workdir, other], kept, LIMITS) as url:
        content = (tmp_path / "in" / "a.png").read_bytes()
        job, now = ended(url, content)
        facts = now["facts"]
        planes = zlib.decompress(get(url, f"{job}/slices/0"))
        mask = get(url, f"{job}/mask")
        request(url, "DELETE", job)
    assert mask == (tmp_path / "out" / "a_mask.png").read_bytes()
    assert facts["samples"] == 4
    parts = ["within_models", "between_models"]
    assert facts["maps"] == ["entropy", "mutual_information", "variance", *parts]
    planes = np.frombuffer(planes, np.uint8).reshape(1 + 1 + 5 + 4, SIZE, SIZE)
    # The models disagree on values between 0.3 and 0.5 of the brightest, and only there.
    unsure = (planes[0] > 0.3 * 255) & (planes[0] <= 0.5 * 255)
    assert unsure.any()
    assert (planes[6][unsure] > 60).all()
    assert (planes[6][~unsure] < 10).all()


@pytest.mark.slow
def test_the_load_test_in_small(url, uploads, known, kept, capfd):
    every = load.chosen([*uploads[0], *others(LIMITS.upload, LIMITS.unpacked)], 40)
    found = load.report(url, every, known, clients=3, pid=os.getpid())
    assert found["unexpected"] == []
    assert found["mixed"] == 0
    assert sum(found["outcomes"].values()) == 40
    assert set(found["outcomes"]) == {"done", "refused", "too large", "cut off"}
    assert load.count_files(kept) == 0
    out, err = capfd.readouterr()
    assert SECRET not in out + err


@pytest.mark.slow
def test_the_load_test_sees_a_mixed_result(url, uploads, known):
    first, second = uploads[0][:2]
    assert load.send(url, first, known[first.name]) == ("done", False)
    assert load.send(url, first, known[second.name]) == ("done", True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mixed": 1},
        {"unexpected": ["x"]},
        {"exit_code": 1},
        {"mib_after": 60.0},
        {"words_told": 1},
    ],
)
def test_the_load_test_fails_where_something_is_wrong(wrong):
    good = {
        "unexpected": [],
        "mixed": 0,
        "exit_code": 0,
        "mib_before": 20.0,
        "mib_after": 25.0,
    }
    assert load.is_good(good)
    assert not load.is_good(good | wrong)


@pytest.mark.slow
def test_a_visitor_is_answered_while_others_attack(workdir, tmp_path):
    """This is tests/helpers/attack.py in small, without its times and memory."""
    limits = dataclasses.replace(LIMITS, connections=24, waiting=6, upload=2**25)
    with served(workdir, tmp_path, limits, token="t0ken") as url:
        found = attack.attack(
            url, "t0ken", os.getpid(), uploads=24, silent=48, seconds=8
        )
    assert found["answers"] > 3
    assert set(found["statuses"]) <= {"200", "202", "204", "503"}
    assert set(found["hostile"]) <= {"refused", "done", "still waiting", "no place"}
    assert found["hostile"]["refused"] > 3
    assert list(tmp_path.iterdir()) == []


GOOD_ATTACK = {
    "answers": 9,
    "seconds_most": 0.5,
    "statuses": {"200": 5, "202": 2, "503": 2},
    "mib_before": 500.0,
    "mib_most": 540.0,
    "mib_reader_most": 300.0,
    "exit_code": 0,
    "left_after_start": 0,
    "left_at_the_end": 0,
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds_most": 2.1},
        {"answers": 0},
        {"statuses": {"200": 8, "TimeoutError": 1}},
        {"mib_most": 565.0},
        {"mib_reader_most": 3200.0},
        {"exit_code": 1},
        {"left_after_start": 2},
        {"left_at_the_end": 1},
    ],
)
def test_the_attack_fails_where_something_is_wrong(wrong):
    assert attack.is_good(GOOD_ATTACK)
    assert not attack.is_good(GOOD_ATTACK | wrong)


def test_refusals_have_the_words_of_mode_predict(url, workdir, tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError) as error:
        cfg = run_config.load(workdir)
        predict.run(cfg, str(workdir), str(path), str(tmp_path / "out"))
    _, now = ended(url, path.read_bytes(), like=".nii.gz")
    assert now["state"] == "refused"
    assert now["text"] == str(error.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    "path",
    ["/jobs/x", "/jobs/x/mask", "/jobs/..%2f..%2fetc/mask", "/serve.html", "/nothing"],
)
def test_an_unknown_address_is_not_found(url, path):
    assert request(url, "GET", path)[0] == 404


def test_an_upload_of_another_site_is_refused(url):
    connection = http.client.HTTPConnection(url.split("/")[2])
    connection.request("POST", "/jobs", b"x", {"Origin": "https://evil.example"})
    assert connection.getresponse().status == 403
    connection.close()


# --- from the command line ---

_START = """
import sys
sys.path[:0] = sys.argv[1:3]
import bright_model
from biedsnet_jax import main
from biedsnet_jax.config import build_model
build_model.build = lambda cfg: bright_model.Bright()
sys.exit(main.run(["main", *sys.argv[3:]]))
"""


def _heed_signals():
    """A shell's background job ignores Ctrl-C, one under nohup also SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def started(workdir, tmp_path):
    """`started(*flags)` starts a server; returns its process and first lines."""
    processes = []
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    def start(*flags):
        program = [sys.executable, "-c", _START, str(ROOT), str(ROOT / "tests/helpers")]
        server = subprocess.Popen(
            [*program, "--mode=serve", f"--workdir={workdir}", "--port=0", *flags],
            cwd=tmp_path,
            env=os.environ | {"TMPDIR": str(temporary), "JAX_PLATFORMS": "cpu"},
            preexec_fn=_heed_signals,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(server)
        lines = ""
        while "Ctrl-C stops" not in lines:
            line = server.stdout.readline()
            assert line, lines
            lines += line
        return server, lines

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_another_host_needs_a_token_and_sigterm_leaves_nothing(started, tmp_path):
    process, said = started("--host=0.0.0.0", "--upload_mb=3", "--waiting=5")
    assert "3 MiB an upload, 5 waiting, 600 s a scan" in said
    assert "encrypted" in said
    port, token = re.search(r":(\d+)/\?token=(\S+)", said).groups()
    url = f"http://127.0.0.1:{port}"
    for path in ("/", "/serve.js", "/jobs/x", "/?token=wrong"):
        assert request(url, "GET", path)[0] == 401
    assert request(url, "POST", "/jobs", b"x")[0] == 401
    assert request(url, "GET", f"/?token={token}")[0] == 303
    assert len(list((tmp_path / "tmp").rglob("biedsnet_serve_*"))) == 1
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Traceback" not in rest
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_it_while_it_segments(started, tmp_path):
    process, said = started()
    url = re.search(r"is served at (\S+)", said).group(1)
    assert url.startswith("http://127.0.0.1:")
    assert "token" not in said
    (tmp_path / "scans").mkdir()
    (one, *_) = scans(tmp_path / "scans")
    assert request(url, "POST", "/jobs", one.content)[0] == 202
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Traceback" not in rest
    assert list((tmp_path / "tmp").iterdir()) == []


def reading(url, tmp_path):
    """Uploads 4000 slices of one place, which take seconds, and waits for the reading."""
    files = {f"{n}.dcm": hostile.dicom() for n in range(4000)}
    status, answer = request(url, "POST", "/jobs", hostile.archive(files))
    assert status == 202
    job, deadline = f"/jobs/{json.loads(answer)['id']}", time.monotonic() + 60
    while not list((tmp_path / "tmp").rglob("*.dcm")):
        assert time.monotonic() < deadline, get(url, job)
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_reads_ends_it_at_once_and_leaves_nothing(
    started, tmp_path, number
):
    process, said = started()
    reading(re.search(r"is served at (\S+)", said).group(1), tmp_path)
    began = time.monotonic()
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    # Reading alone may take 60 s; a busy machine needs some time to end.
    assert time.monotonic() - began < 40
    assert process.returncode == 0
    assert "Traceback" not in rest
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_second_signal_leaves_nothing_and_the_next_start_removes_what_a_kill_left(
    started, tmp_path
):
    first, said = started()
    reading(re.search(r"is served at (\S+)", said).group(1), tmp_path)
    first.kill()
    first.communicate(timeout=60)
    assert list((tmp_path / "tmp").rglob("*.dcm"))
    second, said = started()
    assert "killed servers: 1" in said
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    assert not list((tmp_path / "tmp").rglob("*.dcm"))
    url = re.search(r"is served at (\S+)", said).group(1)
    reading(url, tmp_path)
    # The first signal waits for this connection.
    with socket.create_connection(url.split("/")[2].split(":")) as held:
        held.sendall(
            b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\nx"
        )
        time.sleep(0.2)
        second.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        second.send_signal(signal.SIGTERM)
        second.communicate(timeout=60)
    assert second.returncode == -signal.SIGTERM
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("host", "port"),
    [("127.0.0.1", 99999), ("no.such.host.invalid", 0), ("127.0.0.1", -1)],
)
def test_an_address_that_cannot_be_had(host, port):
    place = f"{host}:{port}"
    refused(lambda: serve.listening(host, port), place, "--host or --port")


def test_a_port_that_is_taken(workdir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cfg = run_config.load(workdir)
        refused(lambda: serve.run(cfg, str(workdir), "127.0.0.1", port, LIMITS), port)


def test_without_the_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    refused(lambda: serve.run(None, "", "", 0, LIMITS), "starlette", "pip install")
