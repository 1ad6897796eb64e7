"""Mode serve: a page in the browser that segments what is dropped on it, until Ctrl-C,
SIGTERM or SIGHUP.

Nothing is logged of an upload: the server's own lines about requests are off, and so
are the warnings of the libraries that read files, which may quote them.
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

from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.prediction import predictor as predict
from biedsnet_jax.runtime import processes
from biedsnet_jax.serving import child, folder
from biedsnet_jax.serving.jobs import Jobs
from biedsnet_jax.serving.limits import Limits
from biedsnet_jax.serving.worker import Worker

# seconds that an answer may take once the server is told to stop
_LAST_WORDS = 2


def run(cfg, workdir: str, host: str, port: int, limits: Limits) -> None:
    """Serve the best checkpoint of `workdir` at `host` and `port` (0: any), until a
    signal.

    Raises BadInput where it cannot: no model, no libraries for it, an address that
    cannot be had.
    """
    _check_libraries()
    check_config(cfg)
    if processes.several():
        raise BadInput(
            "a server of many processes, of --num_processes; start it as one"
        )
    _clear_stale()
    with _listening(host, port) as listener:
        predictor = predict.load(workdir, cfg)
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        token = None if _is_local(host) else secrets.token_urlsafe(32)
        with (
            _signals() as stop,
            serving(predictor, listener, limits, token=token, ended=stop) as url,
        ):
            print(
                f"{workdir}, {cfg.row or cfg.network} at step {predictor.model.step}, is served at {url}"
            )
            if token:
                print(
                    "the token in this address lets in whoever has it; nothing is encrypted on the way"
                )
            print(_told(limits), flush=True)
            stop.wait()
    print("stopped; no upload or result is left", flush=True)
    _leave_if_busy()


def _told(limits: Limits) -> str:
    reading = min(limits.read_seconds, limits.job_seconds)
    return (
        f"at most {limits.upload / 2**20:g} MiB an upload, {limits.waiting} waiting, {limits.job_seconds} s a "
        f"scan, of which {reading} s and {limits.memory / 2**30:g} GiB to read it; results are removed "
        f"{limits.keep_seconds / 60:g} min after they were last seen; Ctrl-C stops"
    )


def _clear_stale():
    count = folder.clear_stale()
    if count:
        whose = "1 server had left that did not end by itself"
        if count > 1:
            whose = f"{count} servers had left that did not end by themselves"
        print(f"removed what {whose}", flush=True)


def _leave_if_busy():
    """A program that is being compiled or run cannot be ended: the process leaves
    without it.
    """
    if any(
        thread.name == "segment" and thread.is_alive()
        for thread in threading.enumerate()
    ):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextlib.contextmanager
def serving(
    predictor,
    listener: socket.socket,
    limits: Limits,
    *,
    token: str | None,
    ended: threading.Event | None = None,
) -> Iterator[str]:
    """The server, in threads, while the body runs; gives the address to open. `ended`
    is set where it ends early.
    """
    from biedsnet_jax.serving import app as addresses

    cfg, (host, port) = predictor.model.config, listener.getsockname()[:2]
    with folder.temporary() as root:
        worker = Worker(predictor, limits)
        worker.reader.start()
        jobs = Jobs(root, worker, limits)
        app = addresses.make(
            jobs, limits, model=cfg.row or cfg.network, token=token, port=port
        )
        server = _server(app, limits)

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
    """Not uvicorn's limit_concurrency, which counts silent connections and turns
    visitors away for them.
    """
    import uvicorn

    from biedsnet_jax.serving import connections

    table = connections.Table(limits)
    connection = functools.partial(connections.Connection, table=table)
    return uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, log_level=logging.CRITICAL, access_log=False, server_header=False, ws="none",
            lifespan="off", loop="asyncio", http=connection, proxy_headers=False,
            timeout_graceful_shutdown=_LAST_WORDS,
        )
    )  # fmt: skip


def _check_libraries():
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"a library is missing, {error.name}, of --mode=serve; pip install 'starlette>=1' 'uvicorn>=0.40'"
        ) from None


def _is_local(host):
    from biedsnet_jax.serving import guard

    return guard.is_local(host)


def _listening(host, port) -> socket.socket:
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=64,
        )
    except (OSError, OverflowError, UnicodeError) as error:
        raise BadInput(
            f"cannot listen, {reason(error)}, {host}:{port}; give another --host or --port"
        ) from error


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C, SIGTERM or SIGHUP; a second one ends the process at
    once, and leaves nothing.
    """
    stop, before = threading.Event(), {}

    def hear(number, frame):
        if stop.is_set():
            _leave(number)
        stop.set()

    for number in _ending():
        before[number] = signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ending() -> list[int]:
    """The signals that end a server; not one that whoever started it has turned off, as
    nohup does SIGHUP.
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
    name = (
        socket.gethostname()
        if host in ("0.0.0.0", "::")
        else f"[{host}]"
        if ":" in host
        else host
    )
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
