# SPDX-License-Identifier: Apache-2.0
"""Snapshot: a consistent copy of the data, streamed to a client while the server goes on serving.

Laws
- Everything acknowledged before the call came is in the copy.
- The copy is never whole in memory: READ_BYTES of it are read at a time, and not before the peer has taken what was
  read, down to BACKLOG_BYTES.
- The copy's file has a name only while it is written; from then on it is an open file without one, so that it vanishes
  with its reader, however that ends. What a killed server left behind is removed at the next start.
- SNAPSHOTS_MAX at a time: each takes the data's size on disk.

A stream is the file in pieces of PIECE_BYTES, each with the number of bytes to come, and at the end the SHA-256 of the
file as one more piece, which `remaining_bytes` does not count.
"""

import asyncio
import hashlib
import uuid
from contextlib import suppress
from typing import BinaryIO

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.durable.engine import EngineError
from lessor.server.loop.bugs import told
from lessor.server.loop.core import Core, StreamCall
from lessor.server.services.snapshots import NAME, Snapshots, copy
from lessor.server.version import ETCD_VERSION

PIECE_BYTES = 32_768  # as in etcd
READ_BYTES = 16 * PIECE_BYTES
BACKLOG_BYTES = 1_048_576
# HTTP/1.1 has no signal for "half empty", so a peer that takes its time is looked at this often.
LOOK_S = 0.005


class SnapshotStream:
    """One Snapshot call."""

    def __init__(self, core: Core, call: StreamCall) -> None:
        self._core = core
        self._call = call
        self._begun = False
        self._gone = False
        self._awake = asyncio.Event()

    def on_messages(self, messages: list[bytes]) -> None:
        self._begin()

    def on_requests_end(self) -> None:
        self._begin()  # an empty HTTP body is an empty request

    def on_gone(self) -> None:
        self._gone = True
        self._awake.set()

    def fail(self, error: EtcdError) -> None:
        """A bug ends the call, see bugs.py."""
        self._call.finish(error)

    def catch_up(self) -> bool:
        """The peer has taken something."""
        self._awake.set()
        return False

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        snapshots = self._core.snapshots
        if snapshots.running >= limits.SNAPSHOTS_MAX:
            raise errors.TOO_MANY_REQUESTS.error()
        snapshots.running += 1
        task = asyncio.get_running_loop().create_task(self._run(snapshots))
        snapshots.tasks.add(task)
        task.add_done_callback(snapshots.tasks.discard)

    async def _run(self, snapshots: Snapshots) -> None:
        loop = asyncio.get_running_loop()
        error: EtcdError | None = None
        began_s = self._core.turn.now_s()
        path = snapshots.data_dir / NAME.format(uuid.uuid4().hex)
        try:
            await self._core.committer.flush()
            with await loop.run_in_executor(snapshots.threads, copy, snapshots.engine, path) as file:
                await self._send_file(loop, snapshots, file)
            self._core.metrics.snapshot_s.observe(self._core.turn.now_s() - began_s)
        except EngineError as problem:
            error = EtcdError(Code.UNKNOWN, str(problem))
        except OSError as problem:
            error = EtcdError(Code.UNKNOWN, f"snapshot: {problem.strerror}")
        except Exception as problem:
            error = told(problem, self._call.method.path)
        finally:
            snapshots.running -= 1
        if not self._gone:
            self._call.finish(error)

    async def _send_file(self, loop: asyncio.AbstractEventLoop, snapshots: Snapshots, file: BinaryIO) -> None:
        left_bytes = file.seek(0, 2)
        file.seek(0)
        digest = hashlib.sha256()

        def read() -> bytes:
            data = file.read(READ_BYTES)
            digest.update(data)
            return data

        while left_bytes and not self._gone:
            data = await loop.run_in_executor(snapshots.threads, read)
            if not data:
                raise EtcdError(Code.DATA_LOSS, "snapshot: the copy is shorter than it was")
            replies = []
            for start in range(0, len(data), PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                left_bytes -= len(piece)
                replies.append(_reply(piece, left_bytes))
            await self._drained()
            if not self._gone:
                self._call.send(replies)
        if not self._gone:
            self._call.send([_reply(digest.digest(), 0)])

    async def _drained(self) -> None:
        """Returns when the peer has taken enough of what it was sent, or is gone."""
        while not self._gone and self._call.backlog_bytes > BACKLOG_BYTES:
            self._awake.clear()
            self._call.wake_when_drained(self)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), LOOK_S)


def _reply(blob: bytes, remaining_bytes: int) -> bytes:
    response = rpc_pb2.SnapshotResponse(blob=blob, remaining_bytes=remaining_bytes, version=ETCD_VERSION)
    return response.SerializeToString()
