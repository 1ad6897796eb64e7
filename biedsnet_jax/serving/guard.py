"""Who may ask a server: checks of each request before the page's own code, and headers
on each answer.

On this machine alone no token is needed, but the page must have been opened under one
of the machine's own names: a foreign site's name that its owner points here (DNS
rebinding) is refused. Elsewhere a token is needed: once in the address, then in a
cookie that scripts cannot read; a program sends it as `Authorization: Bearer TOKEN`.
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
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_local(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """The app behind it, for those who may; `token` None on this machine alone."""

    def __init__(self, app: ASGIApp, *, token: str | None, port: int):
        self._app, self._token = app, token
        # a cookie is for all ports of a host
        self._cookie = f"biedsnet_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; of other kinds of connection there are none."""
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
        """What is said to those who may not, and to one who brings a token in the
        address; None for the others.
        """
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self._token is None and not is_local(_name(host)):
            return PlainTextResponse("open this page as localhost or 127.0.0.1\n", 403)
        if origin is not None and _place(origin) != host:
            return PlainTextResponse("requests of other sites are not answered\n", 403)
        if self._token is None:
            return None
        if self._fits(request.query_params.get("token")) and request.url.path == "/":
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
            return answer
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._fits(request.cookies.get(self._cookie)) or (
            scheme.lower() == "bearer" and self._fits(given)
        ):
            return None
        return PlainTextResponse(
            "a token is missing or wrong: open the address that the server printed\n",
            401,
        )

    def _fits(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(
            given.encode(), self._token.encode()
        )


def _name(host: str) -> str:
    """The Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str | None:
    """The Origin header as a Host header has it; None of one that is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
