"""Limits the connections of a server, so that silent ones keep no visitor out.

A connection has some seconds to send the head of a request, and as many between two
requests. Where the limit of open connections is reached, a new one replaces the oldest
silent one: first one that never asked, then one between two requests, then one that does
not take its answer. A fresh connection has one second to ask; if many come at once,
twice the limit may be open. The new one is turned away only if all others are at work.
"""

import asyncio
from typing import Protocol, runtime_checkable

from uvicorn.protocols.http.h11_impl import H11Protocol

from biedsnet_jax.serving.guard import is_local
from biedsnet_jax.serving.limits import Limits

_FRESH_SECONDS = 1
# Times the limit, for fresh connections.
_BURST = 2
# In the order in which they lose their place.
NEVER_ASKED, BETWEEN, STUCK, FRESH, AT_WORK = range(5)


@runtime_checkable
class Member(Protocol):
    """A connection as a table knows it."""

    # Empty on this machine, whose visitors share one address.
    address: str
    # From NEVER_ASKED to AT_WORK.
    standing: int

    def drop(self) -> None:
        """Closes the connection at once."""


class Table:
    """Open connections, oldest first."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self._open: dict[Member, None] = {}

    def admit(self, connection: Member) -> bool:
        """Decides whether a new connection may stay; an older one may be dropped for it."""
        each = self.limits.connections_each
        most = self.limits.connections
        address = connection.address
        alike = [one for one in self._open if address and one.address == address]
        if len(alike) >= each and not self._make_room(alike, each):
            return False
        if len(self._open) >= most and not self._make_room(list(self._open), most):
            return False
        self._open[connection] = None
        return True

    def forget(self, connection: Member) -> None:
        """Removes a connection that is closed."""
        self._open.pop(connection, None)

    def _make_room(self, connections: list[Member], most: int) -> bool:
        """Makes room for one more beside these; returns False where it cannot."""
        first = min(connections, key=lambda one: one.standing)
        if first.standing == AT_WORK:
            return False
        if first.standing < FRESH or len(connections) >= _BURST * most:
            self.forget(first)
            first.drop()
        return True


class Connection(H11Protocol):
    """A connection of uvicorn with a place in a table."""

    def __init__(self, *arguments, table: Table, **options):
        super().__init__(*arguments, **options)
        self._table = table
        self._waits: asyncio.TimerHandle | None = None
        self._drains: asyncio.TimerHandle | None = None
        self._since = self.loop.time()
        self.address = ""

    @property
    def standing(self) -> int:
        """State of the connection, from NEVER_ASKED to AT_WORK."""
        if self.cycle is None:
            fresh = self.loop.time() - self._since < _FRESH_SECONDS
            return FRESH if fresh else NEVER_ASKED
        if self.cycle.response_complete:
            return BETWEEN
        return STUCK if self._drains else AT_WORK

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Takes a place, or closes at once."""
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        self.address = "" if is_local(host) else host
        if self._table.admit(self):
            self._expect_request()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Receives bytes; only the whole head of a request ends its time limit."""
        super().data_received(data)
        self._expect_request()

    def on_response_complete(self) -> None:
        """Starts the time limit of the next request."""
        self._stop_waiting()
        super().on_response_complete()
        self._expect_request()

    def pause_writing(self) -> None:
        """Watches a visitor who takes the answer slower than it comes."""
        super().pause_writing()
        self._watch_drain(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Ends the watch over a visitor who has taken the answer."""
        self._stop_draining()
        super().resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Frees the place."""
        self._stop_waiting()
        self._stop_draining()
        self._table.forget(self)
        super().connection_lost(error)

    def drop(self) -> None:
        """Closes the connection at once."""
        self.transport.abort()

    def _expect_request(self):
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked or self.transport.is_closing():
            self._stop_waiting()
        elif self._waits is None:
            seconds = self._table.limits.header_seconds
            self._waits = self.loop.call_later(seconds, self.drop)

    def _stop_waiting(self):
        if self._waits:
            self._waits.cancel()
        self._waits = None

    def _watch_drain(self, before: int):
        self._drains = self.loop.call_later(
            self._table.limits.answer_seconds, self._look_at_drain, before
        )

    def _look_at_drain(self, before: int):
        now = self.transport.get_write_buffer_size()
        if now >= before:
            self.drop()
        else:
            self._watch_drain(now)

    def _stop_draining(self):
        if self._drains:
            self._drains.cancel()
        self._drains = None
