"""Does a server keep visitors apart, and its memory and its disk clean? Sends it much,
part of it broken or huge.

    python benchmarks/serving/load.py --workdir=runs/phantom [--uploads=50] [--clients=8] [--output=serve_load.json]

The model of --workdir, of one channel, is served by a process of its own. All uploads
are sent once to warm it up, then once more. Each mask must be the bytes that mode
predict writes for the same scan, each summary have its figures, and what is wrong must
be refused; whose result it is, is told by its size. Told are the outcomes, what was
unexpected or mixed, the resident memory before and after the second round, files left
in the server's temporary folder, and words of uploads in its output. Linux alone.

Exit code 1 if anything was unexpected, mixed, left or told, or the memory grew by 32
MiB or more.
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

# MiB
MOST_GROWTH = 32
# MiB an upload, of the server
LARGEST = 4
# seconds for one upload
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
            program, arguments.workdir, folder, says=r"is served at (\S+)"
        ) as (url, process):
            warm = report(url, every, known, clients=arguments.clients, pid=process.pid)
            result = report(
                url, every, known, clients=arguments.clients, pid=process.pid
            )
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
    """Whether nothing in a report is wrong."""
    wrong = (
        "unexpected",
        "mixed",
        "files_left",
        "folders_left",
        "words_told",
        "exit_code",
    )
    return (
        not any(result.get(name) for name in wrong)
        and result["mib_after"] - result["mib_before"] < MOST_GROWTH
    )


def expected(
    workdir: str, scans: Path, masks: Path
) -> dict[str, tuple[bytes, list[dict]]]:
    """Of each scan the mask and the rows that mode predict writes for it alone."""
    cfg, found = run_config.load(Path(workdir)), {}
    for path in sorted(scans.iterdir()):
        name = path.name.split(".")[0]
        predict.run(cfg, workdir, str(path), str(masks / name))
        (mask,) = (masks / name).rglob("*_mask.*")
        with (masks / name / "summary.csv").open(newline="") as file:
            found[name] = mask.read_bytes(), list(csv.DictReader(file))
    assert len({mask for mask, _ in found.values()}) == len(found), (
        "two masks are the same"
    )
    return found


def chosen(uploads: list[Upload], count: int, seed: int = 0) -> list[Upload]:
    """So many, each kind as often as the others, in random order."""
    every = [uploads[n % len(uploads)] for n in range(count)]
    random.Random(seed).shuffle(every)
    return every


def report(
    url: str, uploads: list[Upload], known: dict, *, clients: int, pid: int
) -> dict:
    """Send all of them from so many clients at once."""
    before, start = scripts.resident_mib(pid), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda one: send(url, one, known.get(one.name)), uploads))
    return {
        "uploads": len(uploads),
        "clients": clients,
        "outcomes": dict(collections.Counter(end for end, _ in found)),
        "unexpected": [
            f"{one.name}: {end}"
            for one, (end, _) in zip(uploads, found)
            if end != one.ends
        ],
        "mixed": sum(mixed for _, mixed in found),
        "mib_before": round(before, 1),
        "mib_after": round(scripts.resident_mib(pid), 1),
        "seconds": round(time.monotonic() - start),
    }


def send(
    url: str, upload: Upload, known: tuple[bytes, list[dict]] | None
) -> tuple[str, bool]:
    """(how it ended, whether the result was another's) of one upload, which is removed
    from the server after it.
    """
    status, answer = _post(url, upload)
    if status != 202:
        return {413: "too large", None: "cut off"}.get(
            status, f"status {status}"
        ), False
    job, deadline = f"/jobs/{json.loads(answer)['id']}", time.monotonic() + WAIT
    while (now := json.loads(_get(url, job)))["state"] not in (
        "done",
        "refused",
        "failed",
    ):
        if time.monotonic() > deadline:
            return f"still {now['state']}", False
        time.sleep(0.05)
    mixed = now["state"] == "done" and not _is_own(url, job, now["facts"], known)
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
    # that may differ
    own = {"name", "file", "seconds"}
    alike = [{k: v for k, v in row.items() if k not in own} for row in served] == [
        {k: v for k, v in row.items() if k not in own} for row in rows
    ]
    planes = facts["colours"] + facts["classes"] * (
        1 + len(facts["maps"]) + facts["samples"]
    )
    last = zlib.decompress(_get(url, f"{job}/slices/{facts['slices'] - 1}"))
    size = int(rows[0]["height"]) * int(rows[0]["width"])
    return alike and _get(url, f"{job}/mask") == mask and len(last) == planes * size


def _post(url, upload) -> tuple[int | None, bytes]:
    path = "/jobs?" + urllib.parse.urlencode({"like": upload.like})
    if upload.how == "whole":
        return _request(url, "POST", path, upload.content)
    with contextlib.closing(_connection(url)) as connection:
        if upload.how == "chunked":
            parts = (
                upload.content[n : n + 2**16]
                for n in range(0, len(upload.content), 2**16)
            )
            # it was answered before its end
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(
                    "POST",
                    path,
                    parts,
                    encode_chunked=True,
                    headers={"Transfer-Encoding": "chunked"},
                )
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
    """Below a folder, but for the server's lock, once what is removed in the background
    is gone.
    """
    for _ in range(100):
        count = sum(
            path.is_file() and path.name != ".lock" for path in folder.rglob("*")
        )
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
