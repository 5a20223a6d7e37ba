# SPDX-License-Identifier: Apache-2.0
"""Long replies that are being made, and that nobody reads, share a bound; the address with most loses one."""

import asyncio
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.server.loop.held import Held
from lessor.server.observe.shortages import LONG_REPLIES
from lessor.state.encode import nested
from lessor.state.long_read import Written
from lessor.testing.server import InProcessServer
from tests.conformance.raw_h2 import DATA, END_STREAM, RawH2
from tests.in_process import in_process
from tests.unit.server.lock_world import Call, LockWorld

pytestmark = pytest.mark.inside

ALL = rpc.RangeRequest(key=b"\0", range_end=b"\0")
MIB = 1_048_576


class Reader:
    """A connection that takes nothing of what it is sent."""

    def __init__(self) -> None:
        self.unread_bytes = 0
        self.is_cut_off = False

    def cut_off(self) -> None:
        self.is_cut_off = True

    def look(self) -> None: ...


def pieces(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield nested(b"\x7a", bytes(MIB))  # a field that nobody knows


def begin(world: LockWorld, count: int, address: str, *, written: bool = False) -> tuple[Call, Reader]:
    reader = Reader()
    call = Call(world.core, ALL, Held(address, reader))
    made = pieces(count)
    call.waiting = world.core.long_replies.begin(call, Written(made, 0) if written else made)
    return call, reader


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_of_replies_being_made_the_largest_of_the_largest_address_is_refused() -> None:
    async def main() -> None:
        world = LockWorld()
        with mock.patch.object(limits, "LONG_REPLIES_BYTES_MAX", 20 * MIB):
            many = [begin(world, 1_000, "many")[0] for _ in range(5)]
            one, _ = begin(world, 6, "one")
            write, _ = begin(world, 3, "many", written=True)
            for _ in range(100):
                await asyncio.sleep(0)
                assert world.core.long_replies._memory.made_bytes <= 20 * MIB
        assert one.decided
        assert write.decided
        refused = [call for call in many if call.outcome is not None]
        assert {call.error for call in refused} == {errors.TOO_MANY_REQUESTS.message}
        assert world.core.metrics.shortages.counts[LONG_REPLIES] == len(refused)
        for call in many:
            call.gone()
        await turns(3)
        assert world.core.long_replies.idle
        assert world.core.long_replies._memory.made_bytes == 0

    asyncio.run(main())


def test_as_many_are_refused_in_one_turn_as_it_takes() -> None:
    async def main() -> None:
        world = LockWorld()
        many = [begin(world, 1_000, "many")[0] for _ in range(5)]
        await turns(26)
        with mock.patch.object(limits, "LONG_REPLIES_BYTES_MAX", 8 * MIB):
            await turns(1)
            assert world.core.long_replies._memory.made_bytes <= 8 * MIB
        assert [call.outcome is None for call in many].count(True) == 1
        for call in many:
            call.gone()

    asyncio.run(main())


def test_of_replies_that_nobody_reads_the_oldest_is_dropped_with_its_connection() -> None:
    async def main() -> None:
        world = LockWorld()
        with mock.patch.object(limits, "LONG_REPLIES_BYTES_MAX", 10 * MIB + 100):
            readers = []
            for size in (2, 3, 2, 2):
                _, reader = begin(world, size, "same")
                await turns(10)
                reader.unread_bytes = size * MIB
                readers.append(reader)
            readers[0].unread_bytes = 0  # it has read all
            await turns(1)
            _, other = begin(world, 3, "other")
            await turns(10)
            other.unread_bytes = 3 * MIB
            assert [reader.is_cut_off for reader in readers] == [False] * 4
            begin(world, 2, "other")
            await turns(10)
            assert [reader.is_cut_off for reader in readers] == [False, True, False, False]
            assert not other.is_cut_off

    asyncio.run(main())


def http_1(server: InProcessServer) -> socket.socket:
    body = b'{"key":"AA==","range_end":"AA=="}'
    host, _, port = server.address.partition(":")
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    one.connect((host, int(port)))
    one.sendall(b"POST /v3/kv/range HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    return one


def http_2(server: InProcessServer) -> RawH2:
    one = RawH2(server.address, window=65_535)
    request = ALL.SerializeToString()
    stream = one.open("/etcdserverpb.KV/Range", end=False)
    one.send(DATA, END_STREAM, stream, b"\0" + len(request).to_bytes(4, "big") + request)
    return one


def reads_all(one: Any) -> bool:
    if isinstance(one, socket.socket):
        one.settimeout(20)
        got = 0
        while got < 8 * MIB and (more := len(one.recv(MIB))):
            got += more
        return got >= 8 * MIB
    one.give_window(0, 1 << 30)
    one.give_window(1, 1 << 30)
    return len(one.outcomes([1])[1].data) > 8 * MIB


@pytest.mark.parametrize("connect", [http_1, http_2])
def test_connections_that_ask_and_do_not_read_share_a_bound(connect: Any, tmp_path: Path) -> None:
    bound = 40 * MIB
    with mock.patch.object(limits, "LONG_REPLIES_BYTES_MAX", bound), in_process(tmp_path) as server:
        core = server.server.core
        for number in range(8):
            put = rpc.PutRequest(key=b"%d" % number, value=bytes(MIB))
            server.call(partial(core.machine.apply, put, 0.0))

        def unread_bytes() -> int:
            assert core.long_replies.idle or core.long_replies._memory.made_bytes <= bound
            return sum(each.unread_bytes for each in server.server._connections)

        asked = []
        for _ in range(12):
            asked.append(connect(server))
            with connect(server) as reader:  # one that reads
                assert reads_all(reader)
            assert server.call(unread_bytes) <= bound + 9 * MIB
        assert server.call(lambda: core.metrics.shortages.counts[LONG_REPLIES]) >= 6
        for each in asked:
            each.__exit__(None, None, None)
