"""Routes of a server: the page, and for its script uploads, their state and results."""

import asyncio
import html
import pathlib
import string

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from biedsnet_jax.serving import worker
from biedsnet_jax.serving.guard import Guard, is_local
from biedsnet_jax.serving.jobs import Full, Job, Jobs
from biedsnet_jax.serving.limits import Limits
from biedsnet_jax.serving.upload import KINDS, UPLOAD

_WEB = pathlib.Path(__file__).parents[1] / "web"
_FILES = {
    "report.css": "text/css",
    "serve.css": "text/css",
    "theme.js": "text/javascript",
    "serve.js": "text/javascript",
}


def make(
    jobs: Jobs, limits: Limits, *, model: str, token: str | None, port: int
) -> ASGIApp:
    """Makes the app that serves the model called `model`.

    Without a `token` only visitors of this machine are answered; see `Guard`.
    """
    routes = [
        Route("/", _constant(_page(model, limits), "text/html")),
        Route("/jobs", _upload(jobs, limits), methods=["POST"]),
        Route("/jobs/{id}", _of_job(jobs, _state), methods=["GET"]),
        Route("/jobs/{id}", _of_job(jobs, _remove), methods=["DELETE"]),
        Route("/jobs/{id}/slices/{z:int}", _of_job(jobs, _slice)),
        Route("/jobs/{id}/mask", _of_job(jobs, _mask)),
        Route("/jobs/{id}/summary", _of_job(jobs, _summary)),
    ]
    for name, kind in _FILES.items():
        routes.append(Route(f"/{name}", _constant((_WEB / name).read_text(), kind)))
    return Guard(Starlette(routes=routes), token=token, port=port)


def _page(model, limits):
    template = string.Template((_WEB / "serve.html").read_text())
    return template.substitute(
        model=html.escape(model),
        bytes=limits.upload,
        mib=f"{limits.upload / 2**20:g}",
        minutes=f"{limits.keep_seconds / 60:g}",
    )


def _constant(text, kind):
    async def endpoint(request: Request) -> Response:
        return Response(text, media_type=kind)

    return endpoint


def _refused(text, code, **headers):
    return JSONResponse({"text": text}, code, headers=headers)


def _ended(text, code, **headers):
    """Refuses an upload; the rest of its body is not read, so the connection closes."""
    return _refused(text, code, Connection="close", **headers)


def _upload(jobs, limits):
    """Makes the endpoint that takes uploads; the body of a request is the file.

    `?like=.png` says what to take the file for where its bytes do not tell.
    """
    most = f"{limits.upload / 2**20:g} MiB"
    too_large = f"The upload is larger than {most}. Cut it into parts."
    full = "The server cannot write; its disk may be full. Try again later."

    async def endpoint(request: Request) -> Response:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limits.upload:
            return _ended(too_large, 413)
        like = request.query_params.get("like", "")
        try:
            job = jobs.new(like if like in KINDS else "", _address(request))
        except Full as error:
            return _busy(own=error.own)
        except OSError:
            return _ended(full, 507)
        try:
            async with asyncio.timeout(limits.upload_grace) as clock:
                job.give_up = lambda: clock.reschedule(0)
                complete = await _receive(request, job, limits, clock)
            if not complete:
                return _ended(too_large, 413)
            if job.removed:
                return _busy(own=False)
            jobs.submit(job)
            return JSONResponse({"id": job.id}, 202)
        except TimeoutError:
            if job.removed:
                return _busy(own=False)
            return _ended(_slow(job, limits), 408)
        except OSError:
            return _ended(full, 507)
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            if job.state == "uploading":
                jobs.remove(job)

    return endpoint


def _address(request) -> str:
    """Returns the address of a visitor; empty on this machine.

    All visitors through `ssh -L` have the address of this machine.
    """
    host = request.client.host if request.client else ""
    return "" if is_local(host) else host


def _busy(*, own):
    whose = "uploads of your address" if own else "uploads"
    text = f"Too many {whose} are waiting. Try again in a minute."
    return _ended(text, 503, **{"Retry-After": "60"})


def _slow(job, limits) -> str:
    return (
        f"Only {job.received} bytes of the upload arrived in time. It may take "
        f"{limits.upload_seconds} s and needs {limits.upload_rate / 2**10:g} KiB/s."
    )


async def _receive(request, job: Job, limits: Limits, clock: asyncio.Timeout) -> bool:
    """Writes the body to the job's file; returns False where it exceeds the limit.

    Bytes that arrive extend the time limit, at the lowest rate that is allowed.
    """
    began = asyncio.get_running_loop().time()
    with (job.folder / UPLOAD).open("wb") as file:
        async for chunk in request.stream():
            job.received += len(chunk)
            if job.received > limits.upload:
                return False
            file.write(chunk)
            seconds = limits.upload_grace + job.received / limits.upload_rate
            if not job.removed:
                clock.reschedule(began + min(seconds, limits.upload_seconds))
    return True


def _of_job(jobs, answer):
    # Not async, so that it runs in a thread: it may wait for a disk.
    def endpoint(request: Request) -> Response:
        job = jobs.get(request.path_params["id"])
        if job is None:
            text = "The server has removed this scan and its results. Send it again."
            return _refused(text, 404)
        return answer(jobs, job, request)

    return endpoint


def _state(jobs, job, request):
    done, slices = job.progress
    state = {
        "state": job.state,
        "before": jobs.place(job),
        "done": done,
        "slices": slices,
        "text": job.text,
    }
    if job.state == "done":
        state["facts"] = job.facts
    return JSONResponse(state)


def _remove(jobs, job, request):
    jobs.remove(job)
    return Response(status_code=204)


def _slice(jobs, job, request):
    path = worker.slice_path(job.folder, request.path_params["z"])
    return _file(job, path, "application/octet-stream")


def _mask(jobs, job, request):
    name = job.facts.get("mask", "mask")
    kind = "image/png" if name.endswith(".png") else "application/gzip"
    return _file(job, job.folder / name, kind, attached=True)


def _summary(jobs, job, request):
    return _file(job, job.folder / worker.SUMMARY, "text/csv", attached=True)


def _file(job, path, kind, *, attached=False):
    """Sends a result, read whole since the job may be removed meanwhile.

    The page gives an `attached` file the name under which it is saved.
    """
    headers = {"Content-Disposition": "attachment"} if attached else {}
    try:
        if job.state == "done":
            return Response(path.read_bytes(), media_type=kind, headers=headers)
    except OSError:
        pass
    return _refused("The scan has no such result.", 404)
