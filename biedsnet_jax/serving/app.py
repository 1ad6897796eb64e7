"""The addresses of a server: the page, and for its script uploads, their state and
their results.
"""

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
_FILES = {name: "text/css" for name in ("report.css", "serve.css")}
_FILES |= {name: "text/javascript" for name in ("theme.js", "serve.js")}


def make(
    jobs: Jobs, limits: Limits, *, model: str, token: str | None, port: int
) -> ASGIApp:
    """The server of one model."""
    routes = [
        Route("/", _constant(_page(model, limits), "text/html")),
        *(
            Route(f"/{name}", _constant((_WEB / name).read_text(), kind))
            for name, kind in _FILES.items()
        ),
        Route("/jobs", _upload(jobs, limits), methods=["POST"]),
        Route("/jobs/{id}", _of_job(jobs, _state), methods=["GET"]),
        Route("/jobs/{id}", _of_job(jobs, _remove), methods=["DELETE"]),
        Route("/jobs/{id}/slices/{z:int}", _of_job(jobs, _slice)),
        Route("/jobs/{id}/mask", _of_job(jobs, _mask)),
        Route("/jobs/{id}/summary", _of_job(jobs, _summary)),
    ]
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


def _upload(jobs: Jobs, limits: Limits):
    """The body is the file. `?like=.png` says what it may be taken for where its bytes
    do not tell.
    """
    too_large = f"too large, more than {limits.upload / 2**20:g} MiB, the upload; cut it into parts"

    full = "the server cannot write, its disk may be full; try again later"

    async def endpoint(request: Request) -> Response:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limits.upload:
            return _refused(too_large, 413, Connection="close")
        like = request.query_params.get("like", "")
        try:
            job = jobs.new(like if like in KINDS else "", _address(request))
        except Full as error:
            return _busy(own=error.own)
        except OSError:
            return _refused(full, 507, Connection="close")
        try:
            async with asyncio.timeout(limits.upload_grace) as clock:
                job.give_up = lambda: clock.reschedule(0)
                complete = await _receive(request, job, limits, clock)
            if not complete:
                return _refused(too_large, 413, Connection="close")
            if job.removed:
                return _busy(own=False)
            jobs.submit(job)
            return JSONResponse({"id": job.id}, 202)
        except TimeoutError:
            return (
                _busy(own=False)
                if job.removed
                else _refused(_slow(job, limits), 408, Connection="close")
            )
        except OSError:
            return _refused(full, 507, Connection="close")
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            if job.state == "uploading":
                jobs.remove(job)

    return endpoint


def _address(request: Request) -> str:
    """Who asks; empty on this machine, where visitors through ssh -L have one address
    together.
    """
    host = request.client.host if request.client else ""
    return "" if is_local(host) else host


def _busy(*, own: bool) -> Response:
    whose = "uploads of your address" if own else "uploads"
    text = f"too many {whose} are waiting; try again in a minute"
    return _refused(text, 503, **{"Connection": "close", "Retry-After": "60"})


def _slow(job: Job, limits: Limits) -> str:
    return (
        f"Only {job.received} bytes of the upload arrived in time. It may take "
        f"{limits.upload_seconds} s and needs {limits.upload_rate / 2**10:g} KiB/s."
    )


async def _receive(
    request: Request, job: Job, limits: Limits, clock: asyncio.Timeout
) -> bool:
    """Whether the whole body is in the file, which is not where it exceeds the limit.

    What has arrived buys time, at the least rate that is allowed.
    """
    now = asyncio.get_running_loop().time
    began = now()
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


def _of_job(jobs: Jobs, answer):
    # in a thread, since it may wait for a disk
    def endpoint(request: Request) -> Response:
        job = jobs.get(request.path_params["id"])
        return (
            answer(jobs, job, request)
            if job
            else _refused("gone: removed, or nobody asked for it any more", 404)
        )

    return endpoint


def _state(jobs: Jobs, job: Job, request) -> Response:
    done, slices = job.progress
    state = {
        "state": job.state,
        "before": jobs.place(job),
        "done": done,
        "slices": slices,
        "text": job.text,
    }
    return JSONResponse(state | ({"facts": job.facts} if job.state == "done" else {}))


def _remove(jobs: Jobs, job: Job, request) -> Response:
    jobs.remove(job)
    return Response(status_code=204)


def _slice(jobs: Jobs, job: Job, request) -> Response:
    return _file(
        job,
        worker.slice_path(job.folder, request.path_params["z"]),
        "application/octet-stream",
    )


def _mask(jobs: Jobs, job: Job, request) -> Response:
    name = job.facts.get("mask", "mask")
    return _file(
        job,
        job.folder / name,
        "image/png" if name.endswith(".png") else "application/gzip",
        attached=True,
    )


def _summary(jobs: Jobs, job: Job, request) -> Response:
    return _file(job, job.folder / worker.SUMMARY, "text/csv", attached=True)


def _file(job, path, kind, *, attached=False) -> Response:
    """Whole in memory, since it may be removed meanwhile. What it is saved as, the page
    says.
    """
    try:
        content = path.read_bytes() if job.state == "done" else None
    except OSError:
        content = None
    if content is None:
        return _refused("not there", 404)
    return Response(
        content,
        media_type=kind,
        headers={"Content-Disposition": "attachment"} if attached else {},
    )
