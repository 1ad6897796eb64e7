"""Loads a server with uploads, some broken or huge, and checks that it stays clean.

    python benchmarks/serving/load.py --workdir=runs/phantom
        [--uploads=50] [--clients=8] [--output=serve_load.json]

The model of --workdir, of one channel, is served by a process of its own. All uploads
are sent once to warm it up, then once more. Each mask must have the bytes that mode
predict writes for the same scan, each summary its figures, and wrong files must be
refused. A result is another visitor's where its size is. The report has the outcomes,
what was unexpected or mixed up, the resident memory before and after the second round,
files left in the server's temporary folder, and words of uploads in its output. Runs on
Linux alone.

Exit code 1 if anything was unexpected, mixed up, left or printed, or the memory grew by
32 MiB or more.
"""

import collections
import concurrent.futures
import contextlib
import csv
import http.client
import io
import json
import random
import re
import signal
import sys
import tempfile
import time
import urllib.parse
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import scripts
from benchmarks.serving.process import serving
from benchmarks.serving.uploads import MEBI, SECRET, Upload, others, scans
from biedsnet_jax.config import run_config
from biedsnet_jax.prediction import predict

# MiB of memory.
MOST_GROWTH = 32
# MiB of an upload that the server takes.
LARGEST = 4
# Seconds for one upload.
WAIT = 600


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("scans", "masks", "tmp"):
            (folder / part).mkdir()
        uploads = scans(folder / "scans") + others(LARGEST * MEBI)
        known = expected(arguments.workdir, folder / "scans", folder / "masks")
        every = chosen(uploads, arguments.uploads)
        program = ["-m", "biedsnet_jax.main", f"--upload_mb={LARGEST}"]
        with serving(
            program, arguments.workdir, folder, pattern=r"is served at (\S+)"
        ) as (url, process):
            clients = arguments.clients
            pid = process.pid
            # The first round compiles and fills pools, so that the second shows leaks.
            warm = report(url, every, known, clients=clients, pid=pid)
            result = report(url, every, known, clients=clients, pid=pid)
            result["unexpected"] += warm["unexpected"]
            result["mixed"] += warm["mixed"]
            result["files_left"] = count_files(folder / "tmp")
            process.send_signal(signal.SIGTERM)
            result["exit_code"] = process.wait(WAIT)
        result["words_told"] = (folder / "log").read_text().count(SECRET)
        result["folders_left"] = len(list((folder / "tmp").iterdir()))
    scripts.show(result, arguments.output)
    return 0 if is_good(result) else 1


def is_good(result: dict) -> bool:
    """Whether a report is as it must be."""
    faults = ("unexpected", "mixed", "files_left", "folders_left", "words_told")
    if any(result.get(name) for name in (*faults, "exit_code")):
        return False
    return result["mib_after"] - result["mib_before"] < MOST_GROWTH


def expected(
    workdir: str, scans: Path, masks: Path
) -> dict[str, tuple[bytes, list[dict]]]:
    """(mask, rows of summary.csv) that mode predict writes for each scan alone."""
    cfg = run_config.load(Path(workdir))
    found = {}
    for path in sorted(scans.iterdir()):
        name = path.name.split(".")[0]
        predict.run(cfg, workdir, str(path), str(masks / name))
        (mask,) = (masks / name).rglob("*_mask.*")
        with (masks / name / "summary.csv").open(newline="") as file:
            found[name] = mask.read_bytes(), list(csv.DictReader(file))
    # Two masks alike could be mixed up unseen.
    assert len({mask for mask, _ in found.values()}) == len(found)
    return found


def chosen(uploads: list[Upload], count: int, seed: int = 0) -> list[Upload]:
    """`count` uploads in random order, each about as often as the others."""
    every = [uploads[n % len(uploads)] for n in range(count)]
    random.Random(seed).shuffle(every)
    return every


def report(
    url: str, uploads: list[Upload], known: dict, *, clients: int, pid: int
) -> dict:
    """Sends all uploads from so many clients at once, and reports on it."""
    before = scripts.resident_mib(pid)
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda one: send(url, one, known.get(one.name)), uploads))
    ends = [end for end, _ in found]
    pairs = zip(uploads, ends)
    return {
        "uploads": len(uploads),
        "clients": clients,
        "outcomes": dict(collections.Counter(ends)),
        "unexpected": [f"{one.name}: {end}" for one, end in pairs if end != one.ends],
        "mixed": sum(mixed for _, mixed in found),
        "mib_before": round(before, 1),
        "mib_after": round(scripts.resident_mib(pid), 1),
        "seconds": round(time.monotonic() - start),
    }


def send(
    url: str, upload: Upload, known: tuple[bytes, list[dict]] | None
) -> tuple[str, bool]:
    """(outcome, whether the result was another's) of an upload.

    It is removed from the server afterwards.
    """
    status, answer = _post(url, upload)
    if status is None:
        return "cut off", False
    if status == 413:
        return "too large", False
    if status != 202:
        return f"status {status}", False
    job = f"/jobs/{json.loads(answer)['id']}"
    deadline = time.monotonic() + WAIT
    ends = ("done", "refused", "failed")
    while (now := json.loads(_get(url, job)))["state"] not in ends:
        if time.monotonic() > deadline:
            return f"still {now['state']}", False
        time.sleep(0.05)
    mixed = now["state"] == "done" and not _is_own(url, job, now["facts"], known)
    # A text for a visitor names neither words of a scan nor paths of the server.
    if SECRET in now["text"] or "/" in re.sub(r"\w/\w", "", now["text"]):
        return f"told: {now['text']}", mixed
    _request(url, "DELETE", job)
    return now["state"], mixed


def _is_own(url, job, facts, known) -> bool:
    """Whether mask, figures and slices are those of this upload."""
    if known is None:
        return False
    mask, rows = known
    served = list(csv.DictReader(io.StringIO(_get(url, f"{job}/summary").decode())))
    # These columns may differ.
    free = dict.fromkeys(("name", "file", "seconds"))
    alike = [row | free for row in served] == [row | free for row in rows]
    maps = 1 + len(facts["maps"]) + facts["samples"]
    planes = facts["colours"] + facts["classes"] * maps
    last = zlib.decompress(_get(url, f"{job}/slices/{facts['slices'] - 1}"))
    size = int(rows[0]["height"]) * int(rows[0]["width"])
    return alike and _get(url, f"{job}/mask") == mask and len(last) == planes * size


def _post(url, upload) -> tuple[int | None, bytes]:
    path = "/jobs?" + urllib.parse.urlencode({"like": upload.like})
    if upload.how == "whole":
        return _request(url, "POST", path, upload.content)
    with contextlib.closing(_connection(url)) as connection:
        if upload.how == "chunked":
            # The server answers before the end, and closes the connection.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                chunked = {"Transfer-Encoding": "chunked"}
                body = io.BytesIO(upload.content)
                connection.request("POST", path, body, chunked, encode_chunked=True)
        else:
            connection.putrequest("POST", path)
            connection.putheader("Content-Length", str(len(upload.content)))
            connection.endheaders()
        if upload.how == "half":
            connection.send(upload.content[: len(upload.content) // 2])
            return None, b""
        answer = connection.getresponse()
        return answer.status, answer.read()


def _get(url, path) -> bytes:
    status, content = _request(url, "GET", path)
    if status != 200:
        raise RuntimeError(f"{status} for {path}")
    return content


def _request(url, method, path, body=None) -> tuple[int, bytes]:
    with contextlib.closing(_connection(url)) as connection:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def _connection(url):
    return http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=WAIT)


def count_files(folder: Path) -> int:
    """Files below a folder but the server's lock, after five seconds at most.

    The server removes files in the background.
    """
    for _ in range(100):
        files = [path for path in folder.rglob("*") if path.is_file()]
        count = len([path for path in files if path.name != ".lock"])
        if not count:
            break
        time.sleep(0.05)
    return count


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--uploads", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--output")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
