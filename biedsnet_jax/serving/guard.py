"""Checks each request before the page's own code, and adds headers to each answer.

A server of this machine alone needs no token, but its page must be opened under one of
the machine's own names: a foreign site's name that points here (DNS rebinding) is
refused. Any other server needs a token: once in the address, then in a cookie that
scripts cannot read. A program sends it as `Authorization: Bearer TOKEN`.
"""

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_local(host: str) -> bool:
    """Checks whether a name or address means this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Passes the requests of those who may ask on to `app`.

    `token` is None for a server of this machine alone.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, port: int):
        self._app, self._token = app, token
        # With the port, since all ports of a host share their cookies.
        self._cookie = f"biedsnet_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; other kinds of connection get no answer."""
        if scope["type"] != "http":
            return
        request = Request(scope)

        async def with_headers(message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._answer(request) or self._app
        await answer(scope, receive, with_headers)

    def _answer(self, request) -> Response | None:
        """Returns the answer to those who may not ask; None for those who may.

        One who brings the token in the address is redirected, and gets the cookie.
        """
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if self._token is None and not is_local(_name(host)):
            return PlainTextResponse("Open this page as localhost or 127.0.0.1.\n", 403)
        if origin is not None and _place(origin) != host:
            return PlainTextResponse("Requests of other sites are not answered.\n", 403)
        if self._token is None:
            return None
        if self._fits(request.query_params.get("token")) and request.url.path == "/":
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
            return answer
        if self._fits(request.cookies.get(self._cookie)):
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._fits(given):
            return None
        return PlainTextResponse(
            "The token is missing or wrong. Open the address that the server printed.\n",
            401,
        )

    def _fits(self, given: str | None) -> bool:
        if given is None:
            return False
        # In constant time, so that its duration tells nothing of the token.
        return hmac.compare_digest(given.encode(), self._token.encode())


def _name(host: str) -> str:
    """Returns the Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str | None:
    """Returns the Origin header in the form of a Host header; None for no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
