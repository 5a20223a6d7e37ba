# SPDX-License-Identifier: Apache-2.0
"""Peers that ask and do not read: a connection that is over does not stay for them."""

import socket
import time
from pathlib import Path

from lessor.base import limits
from lessor.client import AsyncClient, run
from tests.in_process import in_process

ASKED = b'{"key":"AA==","range_end":"AA=="}'
HEAD = b"POST /v3/kv/range HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(ASKED)


async def fill(address: str) -> None:
    async with AsyncClient(address) as client:
        for index in range(12):
            await client.put(b"big%d" % index, b"x" * 1_000_000)


def test_a_connection_that_is_over_is_closed_though_its_peer_does_not_read(tmp_path: Path) -> None:
    with in_process(tmp_path) as server:
        run(fill(server.address))
        host, _, port = server.address.partition(":")
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            peer.connect((host, int(port)))
            peer.sendall(HEAD + ASKED)

            def closing() -> bool:
                return any(one._giving_up is not None for one in server.server._connections)

            give_up = time.monotonic() + 10
            while not server.call(closing):
                assert time.monotonic() < give_up
                time.sleep(0.005)  # waiting for another thread, not for a clock
            server.clock.jump(limits.CONNECTION_CLOSE_S_MAX - 1)
            assert server.call(closing)
            server.clock.jump(2)
            assert not server.call(lambda: server.server._connections)
