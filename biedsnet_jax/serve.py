"""Mode serve: a page in the browser that segments what is dropped on it, until Ctrl-C or SIGTERM.

Nothing is logged of an upload: the server's own lines about requests are off, and so are the warnings of the libraries
that read files, which may quote them.
"""

import contextlib
import logging
import pathlib
import secrets
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator

from biedsnet_jax import config, predict, processes
from biedsnet_jax.errors import reason
from biedsnet_jax.serve_upload import Limits
from biedsnet_jax.types import BadInput

_CONNECTIONS = 128
_LAST_WORDS = 2  # seconds that an answer may take once the server is told to stop


def run(cfg, workdir: str, host: str, port: int, limits: Limits) -> None:
    """Serve the best checkpoint of `workdir` at `host` and `port` (0: any), until a signal.

    Raises BadInput where it cannot: no model, no libraries for it, an address that cannot be had.
    """
    _check_libraries()
    config.check(cfg)
    if processes.several():
        raise BadInput("a server of many processes, of --num_processes; start it as one")
    with _listening(host, port) as listener:
        predictor = predict.load(workdir, cfg)
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        token = None if _is_local(host) else secrets.token_urlsafe(32)
        with _signals() as stop, serving(predictor, listener, limits, token=token, ended=stop) as url:
            print(f"{workdir}, {cfg.row or cfg.network} at step {predictor.step}, is served at {url}")
            if token:
                print("the token in this address lets in whoever has it; nothing is encrypted on the way")
            print(
                f"at most {limits.upload / 2**20:g} MiB an upload, {limits.waiting} waiting, {limits.job_seconds} s a "
                f"scan; results are removed {limits.keep_seconds / 60:g} min after they were last seen; Ctrl-C stops",
                flush=True,
            )
            stop.wait()
    print("stopped; no upload or result is left", flush=True)


@contextlib.contextmanager
def serving(
    predictor, listener: socket.socket, limits: Limits, *, token: str | None, ended: threading.Event | None = None
) -> Iterator[str]:
    """The server, in threads, while the body runs; gives the address to open. `ended` is set where it ends early."""
    import uvicorn

    from biedsnet_jax import serve_app, serve_jobs, serve_scan

    cfg, (host, port) = predictor.cfg, listener.getsockname()[:2]
    with tempfile.TemporaryDirectory(prefix="biedsnet_serve_", ignore_cleanup_errors=True) as folder:
        jobs = serve_jobs.Jobs(pathlib.Path(folder), serve_scan.Worker(predictor, limits), limits)
        app = serve_app.make(jobs, limits, model=cfg.row or cfg.network, token=token, port=port)
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_config=None, log_level=logging.CRITICAL, access_log=False, server_header=False, ws="none",
                lifespan="off", loop="asyncio", http="h11", proxy_headers=False, limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=_LAST_WORDS,
            )
        )  # fmt: skip

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


def _check_libraries():
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"a library is missing, {error.name}, of --mode=serve; pip install 'starlette>=1' 'uvicorn>=0.40'"
        ) from None


def _is_local(host):
    from biedsnet_jax import serve_guard

    return serve_guard.is_local(host)


def _listening(host, port) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64)
    except (OSError, OverflowError, UnicodeError) as error:
        raise BadInput(f"cannot listen, {reason(error)}, {host}:{port}; give another --host or --port") from error


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM; a second one ends the process at once."""
    stop, before = threading.Event(), {}

    def hear(number, frame):
        stop.set()
        for one, handler in before.items():
            signal.signal(one, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _url(host, port, token) -> str:
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
