"""Mode serve: a page in the browser that segments the scans dropped on it, until Ctrl-C,
SIGTERM or SIGHUP.

Nothing about an upload is logged: the request log is off, and so are the warnings of the
libraries that read files, which may quote them.
"""

import contextlib
import functools
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator

from biedsnet_jax.config import members
from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.prediction.predictor import Predictor, load
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import extras, processes
from biedsnet_jax.serving import child, folder
from biedsnet_jax.serving.jobs import Jobs
from biedsnet_jax.serving.limits import Limits
from biedsnet_jax.serving.worker import Worker

# Seconds for the last answers once the server is told to stop.
_LAST_WAIT = 2


def run(cfg, workdir: members.Workdirs, host: str, port: int, limits: Limits) -> None:
    """Serves the best checkpoint of `workdir` at `host` and `port` (0: any free one).

    `workdir` may name several, with commas or as a list, whose models predict together.
    Returns after a signal. Raises BadInput where the model or a library is missing, or
    the address cannot be had.
    """
    extras.need("serve", "The server")
    check_config(cfg)
    if processes.several():
        raise BadInput(
            "--num_processes is more than 1, and a server is one process. Leave it out."
        )
    _clear_stale()
    with listening(host, port) as listener:
        predictor = load(workdir, cfg)
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        token = None if _is_local(host) else secrets.token_urlsafe(32)
        with (
            _signals() as stop,
            serving(predictor, listener, limits, token=token, ended=stop) as url,
        ):
            print(f"{_what(predictor.model, workdir)} is served at {url}")
            if token:
                print(
                    "Whoever has the token in this address may use the server. "
                    "Nothing is encrypted on the way."
                )
            print(_describe(limits), flush=True)
            stop.wait()
    print("stopped; no upload or result is left", flush=True)
    _leave_if_busy()


def _what(model: Trained, workdir) -> str:
    if not model.members:
        return f"{workdir}, {model.name} at step {model.step},"
    parts = [f"{member.workdir} at step {member.step}" for member in model.members]
    return f"{model.name} ({', '.join(parts)}),"


def _describe(limits: Limits) -> str:
    reading = min(limits.read_seconds, limits.job_seconds)
    return (
        f"At most {limits.upload / 2**20:g} MiB an upload, {limits.waiting} waiting, "
        f"{limits.job_seconds} s a scan, of which {reading} s and "
        f"{limits.memory / 2**30:g} GiB to read it. Results are removed "
        f"{limits.keep_seconds / 60:g} min after they were last seen. Ctrl-C stops."
    )


def _clear_stale():
    count = folder.clear_stale()
    if count:
        print(f"removed the files of killed servers: {count}", flush=True)


def _leave_if_busy():
    """Ends the process where a program is still being compiled or run.

    Such a program cannot be ended by itself.
    """
    if any(thread.name == "segment" for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextlib.contextmanager
def serving(
    predictor: Predictor,
    listener: socket.socket,
    limits: Limits,
    *,
    token: str | None,
    ended: threading.Event | None = None,
) -> Iterator[str]:
    """Runs the server, in threads, while the body runs; gives the address to open.

    `ended` is set where the server ends before the body.
    """
    from biedsnet_jax.serving import app

    host, port = listener.getsockname()[:2]
    with folder.temporary() as root:
        worker = Worker(predictor, limits)
        worker.reader.start()
        jobs = Jobs(root, worker, limits)
        name = predictor.model.name
        made = app.make(jobs, limits, model=name, token=token, port=port)
        server = _server(made, limits)

        def listen():
            try:
                server.run(sockets=[listener])
            finally:
                if ended:
                    ended.set()

        thread = threading.Thread(target=listen, name="serve", daemon=True)
        thread.start()
        try:
            yield _url(host, port, token)
        finally:
            server.should_exit = True
            thread.join()
            jobs.close()
            worker.reader.close()


def _server(app, limits: Limits):
    import uvicorn

    from biedsnet_jax.serving import connections

    # Not uvicorn's limit_concurrency, which also counts silent connections.
    table = connections.Table(limits)
    config = uvicorn.Config(
        app,
        http=functools.partial(connections.Connection, table=table),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.CRITICAL,
        access_log=False,
        server_header=False,
        # A visitor could forge his address by the headers of a proxy.
        proxy_headers=False,
        timeout_graceful_shutdown=_LAST_WAIT,
    )
    return uvicorn.Server(config)


def _is_local(host):
    from biedsnet_jax.serving import guard

    return guard.is_local(host)


def listening(host: str, port: int) -> socket.socket:
    """Opens a socket that listens. Raises BadInput where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=64)
    except (OSError, OverflowError, UnicodeError) as error:
        raise BadInput(
            f"Cannot listen at {host}:{port}: {reason(error)}. "
            "Give another --host or --port."
        ) from error


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """Gives an event that the first Ctrl-C, SIGTERM or SIGHUP sets.

    A second signal ends the process at once, and leaves no files.
    """
    stop, before = threading.Event(), {}

    def handle(number, frame):
        if stop.is_set():
            _leave(number)
        stop.set()

    for number in _ending():
        before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ending() -> list[int]:
    """Lists the signals that end a server, without those that are ignored.

    nohup, for example, has SIGHUP ignored.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def _leave(number):
    child.end_all()
    folder.remove_open()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _url(host, port, token) -> str:
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    elif ":" in host:
        host = f"[{host}]"
    query = f"?token={token}" if token else ""
    return f"http://{host}:{port}/{query}"
