"""Attacks a server, and measures how it answers its visitors and what it leaves behind.

    python tests/helpers/attack.py --workdir=runs/phantom
        [--uploads=200] [--silent=200] [--seconds=60]

The model of --workdir is served with a token on 127.0.0.1, by a process of its own. For
at most --seconds, hostile files (hostile_files.py) are uploaded, silent connections are
opened and opened again when they are closed, and a visitor with the token asks for the
page and uploads a picture. The report has the seconds of the visitor's answers, the
outcomes of the hostile files, and the memory of the server and of its readers of
uploads, before and at most. Then the server is stopped (SIGTERM) while it reads,
started again, killed (kill -9) while it reads and started once more; the files left on
the disk are counted each time. Runs on Linux alone.

Exit code 1 if an answer took more than 2 s, the server grew by more than 64 MiB, a
reader by more than its limit and 64 MiB, or anything was left.
"""

import collections
import concurrent.futures
import contextlib
import http.client
import json
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import hostile_files as hostile

from benchmarks import scripts
from benchmarks.serving.process import serving
from biedsnet_jax.serving.limits import Limits

MEBI = 2**20
# Seconds to an answer; MiB.
MOST_SECONDS, MOST_GROWTH = 2.0, 64
# Threads that upload hostile files.
SENDERS = 16
# Seconds for a start or an end.
WAIT = 120
# The server asks for a token, as on a network, but listens on this machine alone.
SERVE = (
    "import sys; from biedsnet_jax import main; from biedsnet_jax.serving import serve; "
    "serve._is_local = lambda host: False; "
    "sys.exit(main.run(['main', *sys.argv[1:]]))"
)
# What silent connections send before they fall silent.
SILENT = (
    b"",
    b"GET / HT",
    b"GET / HTTP/1.1\r\nHost: x\r\n",
    b"POST /jobs HTTP/1.1\r\nHost: x\r\n",
)


class Memory(threading.Thread):
    """Measures a server and its children until `ended` is set; `most` is in MiB."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.ended = pid, threading.Event()
        # Before the attack, once the server has compiled.
        self.before = scripts.resident_mib(pid)
        self.most, self.most_reader = self.before, 0.0

    def run(self) -> None:
        """Measures twenty times a second."""
        while not self.ended.wait(0.05):
            self.most = max(self.most, scripts.resident_mib(self.pid))
            for reader in children(self.pid):
                for pid in (reader, *children(reader)):
                    self.most_reader = max(self.most_reader, scripts.resident_mib(pid))


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        with server(arguments.workdir, folder) as (url, token, process):
            result = attack(
                url,
                token,
                process.pid,
                uploads=arguments.uploads,
                silent=arguments.silent,
                seconds=arguments.seconds,
            )
            _slow_upload(url, token, folder / "tmp")
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            result["exit_code"] = process.wait(WAIT)
            result["seconds_to_end"] = round(time.monotonic() - began, 1)
            result["left_after_sigterm"] = len(list((folder / "tmp").iterdir()))
        with server(arguments.workdir, folder) as (url, token, process):
            _slow_upload(url, token, folder / "tmp")
            process.kill()
            process.wait(WAIT)
            result["left_by_kill"] = len(list((folder / "tmp").rglob("*.dcm")))
        with server(arguments.workdir, folder) as (_, _, process):
            result["left_after_start"] = len(list((folder / "tmp").rglob("*.dcm")))
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT)
        result["left_at_the_end"] = len(list((folder / "tmp").iterdir()))
    scripts.show(result, arguments.output)
    return 0 if is_good(result) else 1


def is_good(result: dict) -> bool:
    """Whether a result is as it must be."""
    left = ("left_after_sigterm", "left_after_start", "left_at_the_end", "exit_code")
    limit = Limits().memory / MEBI + MOST_GROWTH
    return (
        result["answers"] > 0
        and result["seconds_most"] <= MOST_SECONDS
        and set(result["statuses"]) <= {"200", "202", "204", "503"}
        and result["mib_most"] - result["mib_before"] <= MOST_GROWTH
        and result["mib_reader_most"] <= limit
        and not any(result.get(name) for name in left)
    )


def attack(
    url: str, token: str, pid: int, *, uploads: int, silent: int, seconds: float
) -> dict:
    """Sends hostile uploads and opens silent connections; reports on a visitor."""
    files = hostile.every()
    ended, found, answers = threading.Event(), collections.Counter(), []
    others = [
        threading.Thread(target=_keep_silent, args=(url, silent, ended), daemon=True),
        threading.Thread(target=_visit, args=(url, token, ended, answers), daemon=True),
    ]
    # The first picture makes the server compile, which the attack must not measure.
    good = hostile.Hostile("picture", hostile.tiff(), "")
    _send(url, token, good, time.monotonic() + WAIT)
    memory = Memory(pid)
    ends = time.monotonic() + seconds
    for thread in (memory, *others):
        thread.start()
    chosen = [files[n % len(files)] for n in range(uploads)]
    with concurrent.futures.ThreadPoolExecutor(SENDERS) as pool:
        found.update(pool.map(lambda one: _send(url, token, one, ends), chosen))
    while time.monotonic() < ends:
        time.sleep(0.1)
    for event in (ended, memory.ended):
        event.set()
    for thread in (memory, *others):
        thread.join(WAIT)
    taken = [seconds for seconds, _ in answers]
    return {
        "uploads": uploads,
        "silent": silent,
        "hostile": dict(found),
        "answers": len(answers),
        "statuses": dict(collections.Counter(str(status) for _, status in answers)),
        "seconds_p95": round(float(np.percentile(taken, 95)), 3),
        "seconds_most": round(max(taken), 3),
        "mib_before": round(memory.before, 1),
        "mib_most": round(memory.most, 1),
        "mib_reader_most": round(memory.most_reader, 1),
    }


def _keep_silent(url, count, ended):
    """Keeps connections open that send little or nothing; opens closed ones again."""
    place = _place(url)
    opened: list[socket.socket] = []
    while not ended.is_set():
        for one in list(opened):
            if _is_closed(one):
                one.close()
                opened.remove(one)
        # At most twenty at once, so that they last for the whole attack.
        for _ in range(min(20, count - len(opened))):
            with contextlib.suppress(OSError):
                one = socket.create_connection(place, timeout=5)
                one.sendall(SILENT[len(opened) % len(SILENT)])
                one.setblocking(False)
                opened.append(one)
        ended.wait(0.05)
    for one in opened:
        one.close()


def _is_closed(one) -> bool:
    try:
        return one.recv(2**12) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _visit(url, token, ended, answers):
    """Adds (seconds, status) of every answer to a visitor: page, upload, removal."""
    requests = (
        ("GET", "/", None),
        ("GET", "/serve.js", None),
        ("POST", "/jobs?like=.tif", hostile.tiff()),
    )
    while not ended.is_set():
        for method, path, body in requests:
            began = time.monotonic()
            status, content = ask(url, token, method, path, body)
            answers.append((time.monotonic() - began, status))
        if status == 202:
            began = time.monotonic()
            status, _ = ask(url, token, "DELETE", f"/jobs/{json.loads(content)['id']}")
            answers.append((time.monotonic() - began, status))
        ended.wait(0.2)


def _send(url, token, file, ends) -> str:
    """The outcome of a hostile file; one that the server has no room for is sent again."""
    path = "/jobs?" + urllib.parse.urlencode({"like": file.like})
    while time.monotonic() < ends:
        status, content = ask(url, token, "POST", path, file.content)
        if status != 202:
            time.sleep(0.3)
            continue
        job = f"/jobs/{json.loads(content)['id']}"
        while time.monotonic() < ends:
            status, content = ask(url, token, "GET", job)
            if status != 200:
                return f"status {status}"
            state = json.loads(content)["state"]
            if state in ("done", "refused", "failed"):
                ask(url, token, "DELETE", job)
                return state
            time.sleep(0.2)
        return "still waiting"
    return "no place"


def ask(url, token, method, path, body=None) -> tuple[int | str, bytes]:
    """(status, content) of one request; the name of an error where there is no answer."""
    host, port = _place(url)
    try:
        connection = http.client.HTTPConnection(host, port, timeout=WAIT)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__, b""


def _place(url):
    parts = urllib.parse.urlsplit(url)
    return parts.hostname, parts.port


def _slow_upload(url, token, folder):
    """Uploads what takes seconds to read; returns once the server reads it."""
    files = {f"{n}.dcm": hostile.dicom() for n in range(4000)}
    deadline, content = time.monotonic() + WAIT, hostile.archive(files)
    while time.monotonic() < deadline:
        status, _ = ask(url, token, "POST", "/jobs", content)
        if status == 202:
            break
        time.sleep(0.2)
    while not list(folder.rglob("*.dcm")) and time.monotonic() < deadline:
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Processes that a process started, by any of its threads."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(number) for number in path.read_text().split()]
    return found


def server(workdir, folder):
    """Yields (address, token, process) of a server."""
    pattern = r"is served at (\S+)/\?token=(\S+)"
    return serving(["-c", SERVE], workdir, folder, pattern=pattern)


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--silent", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--output")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
