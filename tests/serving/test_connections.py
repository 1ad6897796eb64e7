"""Tests that silent and slow connections are closed in time and keep no visitor out.

A real server runs on 127.0.0.1, with a made-up worker and without a model.
"""

import contextlib
import functools
import http.client
import socket
import threading
import time

import pytest

pytest.importorskip("starlette", reason="no starlette: pip install starlette uvicorn")
pytest.importorskip("uvicorn", reason="no uvicorn: pip install uvicorn")

import uvicorn

from biedsnet_jax.serving import app, connections
from biedsnet_jax.serving.connections import AT_WORK, BETWEEN, FRESH, NEVER_ASKED, STUCK
from biedsnet_jax.serving.jobs import Jobs
from biedsnet_jax.serving.limits import Limits

TOKEN = "t0ken-that-nobody-guesses"
LIMITS = Limits(
    connections=20, header_seconds=1, upload_grace=1, waiting=4, upload_rate=1000
)
# Seconds. An answer takes milliseconds, but a busy machine needs more.
PATIENCE = 15


@contextlib.contextmanager
def listening(served, limits):
    """Runs a server of the app `served`; gives its port."""
    table = connections.Table(limits)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            served,
            http=functools.partial(connections.Connection, table=table),
            timeout_graceful_shutdown=1,
            log_level="critical",
            lifespan="off",
            ws="none",
            loop="asyncio",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(PATIENCE)


@pytest.fixture
def port(tmp_path):
    """The port of a server of the page, with a token."""
    jobs = Jobs(tmp_path, lambda folder, like, report: {"notes": []}, LIMITS)
    page = app.make(jobs, LIMITS, model="made up", token=TOKEN, port=0)
    with listening(page, LIMITS) as port:
        yield port
    jobs.close()


@contextlib.contextmanager
def connected(port, *sent):
    """Gives a connection that has sent these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        for part in sent:
            connection.sendall(part)
        yield connection


def answer(port, method="GET", path="/", body=None):
    """Returns the status of a visitor's request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}"})
        return connection.getresponse().status


def is_closed(connection):
    """Whether the other side closed a connection; reads what came."""
    connection.setblocking(False)
    try:
        while connection.recv(2**16):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def ends(connection):
    """Receives until the other side closes the connection."""
    came = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(2**16):
            came += part
    return came


ASKS = f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
POSTS = (
    "POST /jobs HTTP/1.1\r\nHost: x\r\n"
    f"Authorization: Bearer {TOKEN}\r\nContent-Length: 9000\r\n\r\n"
)
SILENT = {
    "nothing": (),
    "half a line": (b"GET / HT",),
    "half a head": (b"GET / HTTP/1.1\r\nHost: x\r\n",),
    "half of the next": (ASKS, b"GET / HTTP/1.1\r\nHo"),
    "nothing after an answer": (ASKS,),
    "a body for nobody": (
        b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\nabc",
    ),
}


@pytest.mark.parametrize("sent", SILENT.values(), ids=SILENT)
def test_a_silent_connection_is_closed(port, sent):
    is_request = ASKS in sent or b"abc" in b"".join(sent)
    with connected(port, *sent) as connection:
        answered = ends(connection).startswith(b"HTTP/1.1 ")
    assert answered or not is_request


def test_bytes_one_by_one_buy_no_time(port):
    """A head that keeps growing is closed like one that does not."""
    began = time.monotonic()
    with connected(port, b"GET / HTTP/1.1\r\nHost: x\r\nX: ") as connection:
        connection.settimeout(0.05)
        closed = False
        while not closed and time.monotonic() - began < PATIENCE:
            try:
                connection.sendall(b"y")
                closed = connection.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                closed = True
    assert closed


@pytest.mark.parametrize(
    "sent", [(), (b"GET / HT",), (ASKS,), (b"POST /jobs HTTP/1.1\r\n",)]
)
def test_silent_connections_keep_no_visitor_out(port, sent):
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connected(port, *sent)) for _ in range(60)]
        # Only 20 are allowed. A visitor who came before the last of them was accepted
        # could be the one that makes room.
        deadline = time.monotonic() + PATIENCE
        while sum(is_closed(one) for one in silent) < 40:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for path in ("/", "/serve.js", "/"):
            assert answer(port, path=path) == 200
        assert answer(port, "POST", "/jobs", b"x" * 100) == 202


def test_a_slow_upload_is_ended(port):
    with connected(port, POSTS.encode(), b"x" * 10) as connection:
        came = ends(connection)
    assert came.startswith(b"HTTP/1.1 408 ")
    assert b" 10 bytes" in came


@pytest.mark.slow
def test_an_upload_that_is_fast_enough_may_take_longer_than_its_grace(port):
    with connected(port, POSTS.encode()) as connection:
        for _ in range(18):
            connection.sendall(b"x" * 500)
            time.sleep(0.1)
        assert connection.recv(2**16).startswith(b"HTTP/1.1 202 ")


def test_uploads_that_stand_still_take_no_place_for_long(port):
    """Of more than may wait, each is answered that it was too slow, or had no room."""
    with contextlib.ExitStack() as stack:
        every = [
            stack.enter_context(connected(port, POSTS.encode(), b"x"))
            for _ in range(12)
        ]
        answers = [ends(connection)[9:12] for connection in every]
        assert {*answers} <= {b"408", b"503"}
        assert answers.count(b"408") == 4
    assert answer(port, "POST", "/jobs", b"x") == 202


async def large(scope, receive, send):
    """An app whose answer does not fit into the buffers of a connection."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(2**25)})


@pytest.mark.slow
def test_an_answer_that_nobody_takes_is_given_up():
    with (
        listening(large, Limits(answer_seconds=1)) as port,
        connected(port, ASKS) as connection,
    ):
        # Nothing is read meanwhile.
        time.sleep(3)
        assert len(ends(connection)) < 2**25


@pytest.mark.slow
def test_an_answer_that_is_taken_slowly_comes_whole():
    with (
        listening(large, Limits(answer_seconds=5)) as port,
        connected(port, ASKS) as connection,
    ):
        came = 0
        for _ in range(15):
            came += len(connection.recv(2**20))
            time.sleep(0.1)
        while part := connection.recv(2**20):
            came += len(part)
    assert came > 2**25


class Made:
    """A made-up connection with a standing and nothing else."""

    def __init__(self, standing, address=""):
        self.standing, self.address, self.dropped = standing, address, False

    def drop(self):
        self.dropped = True


@pytest.mark.parametrize(
    ("standings", "dropped"),
    [
        ((AT_WORK, NEVER_ASKED, NEVER_ASKED), 1),
        ((BETWEEN, STUCK, NEVER_ASKED), 2),
        ((STUCK, AT_WORK, BETWEEN), 2),
        ((AT_WORK, AT_WORK, STUCK), 2),
        ((AT_WORK, FRESH, STUCK), 2),
        ((AT_WORK, AT_WORK, AT_WORK), None),
    ],
)
def test_the_most_silent_connection_loses_its_place(standings, dropped):
    table = connections.Table(Limits(connections=3))
    every = [Made(standing) for standing in standings]
    assert all(table.admit(one) for one in every)
    assert table.admit(Made(NEVER_ASKED)) == (dropped is not None)
    assert [one.dropped for one in every] == [n == dropped for n in range(3)]


def test_fresh_connections_have_time_to_ask():
    """Twice the limit may be open. After that the oldest loses its place."""
    table = connections.Table(Limits(connections=3))
    every = [Made(FRESH) for _ in range(6)]
    assert all(table.admit(one) for one in every)
    assert not any(one.dropped for one in every)
    assert table.admit(Made(FRESH))
    assert [one.dropped for one in every] == [True] + [False] * 5


def test_an_address_has_its_share():
    table = connections.Table(Limits(connections=9, connections_each=2))
    working = [Made(AT_WORK, "192.0.2.1") for _ in range(2)]
    assert all(table.admit(one) for one in working)
    assert not table.admit(Made(NEVER_ASKED, "192.0.2.1"))
    quiet = Made(NEVER_ASKED, "192.0.2.2")
    assert table.admit(quiet)
    assert table.admit(Made(AT_WORK, "192.0.2.2"))
    assert table.admit(Made(NEVER_ASKED, "192.0.2.2"))
    assert quiet.dropped
    # Connections of this machine may have all that are left.
    assert all(table.admit(Made(AT_WORK)) for _ in range(5))
    assert not any(one.dropped for one in working)
