# SPDX-License-Identifier: Apache-2.0
"""The sockets on which a server listens.

Laws
- A URL that cannot be listened on is one OptionError, which says what to do.
- A socket file that another process serves is never replaced, and never removed.
- `hand_on` keeps the sockets open: the next server of the process listens on them. Connections that come meanwhile wait
  in the kernel.
"""

import asyncio
import contextlib
import errno
import os
import socket
from dataclasses import dataclass, field
from typing import Final

from lessor.server.options import Listen, OptionError
from lessor.server.transport.door import Accept

BACKLOG: Final = 4096  # connections that the kernel keeps until they are accepted


@dataclass
class Sockets:
    """What outlives a server of the process. open: by URL. files: path and inode of each socket file that we made."""

    open: dict[str, list[socket.socket]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    def close(self) -> None:
        """No other server of the process listens on them."""
        for each in self.open.values():
            for kept in each:
                kept.close()
        self.open.clear()


class Listening:
    """Of one server."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._servers: list[tuple[Listen, asyncio.Server]] = []
        self.addresses: list[tuple[str, int] | str] = []

    async def begin(self, listen: Listen, flag: str, accept: Accept) -> None:
        """Has `accept` make the protocol of each connection to the URL of `flag`. Raises OptionError."""
        try:
            servers = await self._serve(listen, accept)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            advice = "stop what uses it, or listen elsewhere" if error.errno == errno.EADDRINUSE else "listen elsewhere"
            raise OptionError(f"{flag}: cannot listen on {listen.url}: {reason}; {advice}") from None
        for server in servers:
            self._servers.append((listen, server))
            if listen.unix_path:
                self.addresses.append(listen.unix_path)
            else:
                self.addresses.extend(each.getsockname()[:2] for each in server.sockets)

    async def _serve(self, listen: Listen, accept: Accept) -> list[asyncio.Server]:
        loop = asyncio.get_running_loop()
        handed_on = self._sockets.open.pop(listen.url, None)
        if handed_on is not None and listen.unix_path:
            return [await loop.create_unix_server(accept, sock=each) for each in handed_on]
        if handed_on is not None:
            return [await loop.create_server(accept, sock=each, backlog=BACKLOG) for each in handed_on]
        if listen.unix_path:
            _refuse_served_socket(listen)
            server = await loop.create_unix_server(accept, listen.unix_path)
            self._sockets.files[listen.unix_path] = os.stat(listen.unix_path).st_ino
            return [server]
        return [await loop.create_server(accept, listen.host, listen.port, backlog=BACKLOG)]

    def end(self) -> None:
        """Takes no new connections; existing ones stay."""
        self._close()
        self.remove_files()

    def hand_on(self) -> None:
        """As `end`, for the next server of the process."""
        for listen, server in self._servers:
            kept = [socket.socket(fileno=os.dup(each.fileno())) for each in server.sockets]
            self._sockets.open.setdefault(listen.url, []).extend(kept)
        self._close()

    def _close(self) -> None:
        for _, server in self._servers:
            server.close()
        self._servers.clear()
        self.addresses.clear()

    def remove_files(self) -> None:
        """Removes our socket files; a file that another server has put in the place of one stays."""
        for path, inode in self._sockets.files.items():
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self._sockets.files.clear()


def _refuse_served_socket(listen: Listen) -> None:
    """Raises OptionError if another process serves the socket file.

    The loop replaces an existing socket file. That is right only for one that a killed server left behind.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(listen.unix_path)
        except OSError:
            return
    raise OptionError(f"--listen-client-urls: {listen.url} is served by another process; stop it, or listen elsewhere")
