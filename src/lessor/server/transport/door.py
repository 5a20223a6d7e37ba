# SPDX-License-Identifier: Apache-2.0
"""Keeps some descriptors back from clients: a connection that would take one of the last is closed at once.

Laws
- The data, its snapshots and certificates always find a descriptor, however many clients connect, as long as these do
  not all come in one read of the listener (libuv accepts all that wait before it lets us look at one).
- A connection that is closed here is counted and told in the log, with the limit.

Theory of operation. The kernel gives the lowest free number to a new descriptor. So the number of a socket that has
just been accepted says how many descriptors are in use at least, whoever has them, and nothing needs to be counted.
When the limit itself is reached, libuv closes what waits without a word. It never comes to that silently: the sockets
before took the descriptors that are kept back, and each of these is told.

The limit is asked for each time, so that a new one (prlimit) counts at once.

Does not do: choosing whom to refuse. The last that came is closed, also when one client has taken all the others.
"""

import asyncio
import resource
from collections.abc import Callable
from typing import cast

from lessor.base import limits
from lessor.server.observe.shortages import OPEN_FILES, Shortages

Accept = Callable[[], asyncio.Protocol]


def files_limit() -> int:
    """The limit of open files of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def files_for_clients(limit: int) -> int:
    """How many descriptors connections leave in use at most, of a limit of open files. The rest is kept back."""
    return max(limit - limits.FILES_RESERVED, limit * 3 // 4)


class Door:
    """In front of a listener."""

    def __init__(self, shortages: Shortages) -> None:
        self._shortages = shortages

    def before(self, accept: Accept) -> Accept:
        """A factory of protocols: each is made by `accept` once its socket has been let in."""
        return lambda: _Entry(self, accept)

    def admits(self, descriptor: int) -> bool:
        """Whether a socket that has just been accepted may stay. Counts it if not."""
        limit = files_limit()
        files_max = files_for_clients(limit)
        if descriptor < files_max:
            return True
        self._shortages.reached(OPEN_FILES, limit, kept_back=limit - files_max)
        return False


class _Entry(asyncio.Protocol):
    """The protocol of a socket until it is let in; then the connection takes its place, and this object goes."""

    def __init__(self, door: Door, accept: Accept) -> None:
        self._door = door
        self._accept = accept

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        socket = made.get_extra_info("socket")
        if socket is not None and not self._door.admits(socket.fileno()):
            made.abort()
            return
        connection = self._accept()
        made.set_protocol(connection)
        connection.connection_made(made)
