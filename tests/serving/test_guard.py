"""Tests who may ask a server, and the headers on each answer. No server is started."""

import asyncio
from concurrent import futures

import pytest

pytest.importorskip("starlette", reason="no starlette: pip install starlette uvicorn")

from starlette.responses import PlainTextResponse

from biedsnet_jax.serving.guard import HEADERS, Guard, is_local

TOKEN = "t0ken-that-nobody-guesses"


def ask(token=None, *, path="/", query="", method="GET", **headers):
    """Returns status and headers of an answer; the app behind the guard says 200."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request"}

    headers = {"host": "127.0.0.1:8000"} | headers
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    guard = Guard(PlainTextResponse("in"), token=token, port=8000)
    # In a thread, since Playwright's loop may still run in this one.
    with futures.ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, guard(scope, receive, send)).result()
    return sent[0]["status"], {
        name.decode(): value.decode() for name, value in sent[0]["headers"]
    }


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("example.org", False),
        ("", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_which_addresses_are_this_machine_alone(host, local):
    assert is_local(host) == local


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("localhost:9", 200),
        ("[::1]:8000", 200),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("[", 403),
        ("a:b@127.0.0.1.x", 403),
    ],
)
def test_a_foreign_name_for_this_machine_is_refused(host, status):
    assert ask(host=host)[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://127.0.0.1:9000", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "GET"])
def test_other_sites_are_refused(origin, status, method):
    assert ask(method=method, origin=origin)[0] == status
    bearer = f"Bearer {TOKEN}"
    answer = ask(TOKEN, method=method, origin=origin, authorization=bearer)
    assert answer[0] == status


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"query": "token="},
        {"query": f"token={TOKEN[:-1]}"},
        {"query": "token=%ff%fe"},
        {"query": f"token={TOKEN}", "path": "/jobs/x"},
        {"authorization": TOKEN},
        {"authorization": "Bearer wrong"},
        {"cookie": "biedsnet_8000=wrong"},
        {"cookie": f"biedsnet_8001={TOKEN}"},
    ],
)
def test_without_the_token_nothing_is_answered(given):
    status, headers = ask(TOKEN, host="server.example:8000", **given)
    assert status == 401
    assert "set-cookie" not in headers


def test_the_token_goes_from_the_address_into_a_cookie():
    status, headers = ask(TOKEN, host="server.example:8000", query=f"token={TOKEN}")
    assert (status, headers["location"]) == (303, "/")
    cookie, *attributes = headers["set-cookie"].split("; ")
    assert cookie == f"biedsnet_8000={TOKEN}"
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(attributes)
    assert ask(TOKEN, host="server.example:8000", cookie=cookie)[0] == 200


def test_a_program_sends_it_in_a_header():
    assert ask(TOKEN, host="server.example", authorization=f"Bearer {TOKEN}")[0] == 200


@pytest.mark.parametrize("given", [{}, {"host": "evil.example"}])
def test_every_answer_has_the_headers(given):
    _, headers = ask(**given)
    for name, value in HEADERS.items():
        assert headers[name.lower()] == value
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
