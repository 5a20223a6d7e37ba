# SPDX-License-Identifier: Apache-2.0
"""Snapshot: a consistent copy of the data, streamed to a client while the server goes on serving.

Laws
- All writes that were acknowledged before the call came are in the copy.
- The copy is never whole in memory: READ_BYTES of it are read at a time, and sent when no more than BACKLOG_BYTES wait
  for the peer.
- The copy is an open file without a name, which vanishes with its reader, however the reader ends (snapshots.py).
- At most SNAPSHOTS_MAX are made at a time: each takes the data's size on disk.
- The copy for a peer that has gone away is not finished: its place is free soon.
- A peer that reads too slowly gives its place up: for each READ_BYTES it has SNAPSHOT_READ_S_MAX. Then the stream ends
  with SNAPSHOT_NOT_READ, and the log says so. When all places are taken, a new call gets the place of the peer that has
  made no progress for longest, if that is SNAPSHOT_YIELD_S. Time in which the server stood still does not count.

The file is etcd's: its `etcdutl snapshot restore` takes it. A caller who asks for Lessor's own form in the
call's metadata (base/snapshot_forms.py) gets the tables themselves, SQLite's file, from which `lessor snapshot restore`
makes the very same server.

A stream is the file in pieces of PIECE_BYTES. Each has the number of bytes that follow it. The last piece is the
SHA-256 of the file, which `remaining_bytes` does not count.
"""

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from lessor.api.proto import rpc_pb2
from lessor.api.version import ETCD_VERSION
from lessor.base import errors, limits, snapshot_forms
from lessor.base.errors import Code, EtcdError
from lessor.durable.engine import EngineError
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.call import StreamCall
from lessor.server.loop.core import Core
from lessor.server.observe.shortages import SNAPSHOTS, Shortages
from lessor.server.services.snapshots import NAME, Living, Snapshots, copy, etcd_copy

log = logging.getLogger("lessor")

PIECE_BYTES = 32_768  # as in etcd
READ_BYTES = 16 * PIECE_BYTES
BACKLOG_BYTES = limits.SNAPSHOT_BACKLOG_BYTES
# HTTP/1.1 has no signal for "half empty", so the backlog of a slow peer is looked at this often.
LOOK_S = 0.005
# Between two looks at a backlog no more time than this counts: then the server stood still, and not the peer.
LOOK_COUNTS_S_MAX = 1.0


class SnapshotStream:
    """One Snapshot call."""

    def __init__(self, core: Core, call: StreamCall, snapshots: Snapshots) -> None:
        self._core = core
        self._snapshots = snapshots
        self._call = call
        self._format = (call.metadata(snapshot_forms.FIELD.encode()) or b"").decode("latin-1") or snapshot_forms.ETCD
        self._begun = False
        self._over = False
        self.stalled_s = 0.0  # how long the peer has not taken what waits for it; 0 while the server is at work
        self._sent_bytes = 0  # of the copy; the peer may not have taken the last ones
        self._awake = asyncio.Event()

    def on_messages(self, messages: list[bytes]) -> None:
        self._begin()

    def on_requests_end(self) -> None:
        self._begin()  # an empty HTTP body is an empty request

    def on_over(self) -> None:
        self._over = True
        self._awake.set()

    def end_now(self, error: EtcdError) -> None:
        """A bug ends the call, see bugs.py."""
        self._call.finish(error)

    def catch_up(self) -> bool:
        """The peer has taken some of the backlog."""
        self._awake.set()
        return False

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        if self._format not in snapshot_forms.FORMS:
            known = ", ".join(snapshot_forms.FORMS)
            raise EtcdError(Code.INVALID_ARGUMENT, f"{snapshot_forms.FIELD}: not a format of snapshots: {known} are")
        snapshots, metrics = self._snapshots, self._core.metrics
        if metrics.snapshots >= limits.SNAPSHOTS_MAX:
            _make_room(snapshots, metrics.shortages)
        metrics.snapshots += 1
        snapshots.streams.add(self)
        task = asyncio.get_running_loop().create_task(self._run(snapshots))
        snapshots.tasks.add(task)
        task.add_done_callback(snapshots.tasks.discard)

    async def _run(self, snapshots: Snapshots) -> None:
        loop = asyncio.get_running_loop()
        error: EtcdError | None = None
        began_s = self._core.turn.now_s()
        try:
            await self._core.committer.flush()
            with await loop.run_in_executor(snapshots.threads, self._copying(snapshots)) as file:
                await self._send_file(loop, snapshots, file)
            self._core.metrics.snapshot_s.observe(self._core.turn.now_s() - began_s)
        except (EngineError, OSError) as problem:
            text = str(problem) if isinstance(problem, EngineError) else f"snapshot: {problem.strerror}"
            if not self._over:
                log.warning("a snapshot failed", extra={"error": text})
            error = EtcdError(Code.UNKNOWN, text)
        except Exception as problem:
            error = as_answer(problem, self._call.method.path)
        finally:
            self._core.metrics.snapshots -= 1
            snapshots.streams.discard(self)
        if not self._over:
            self._call.finish(error)

    def _copying(self, snapshots: Snapshots) -> Callable[[], BinaryIO]:
        """What makes the file, in a thread."""
        engine, folder = snapshots.engine, snapshots.data_dir
        if self._format == snapshot_forms.LESSOR:
            path = folder / NAME.format(uuid.uuid4().hex)
            return partial(copy, engine, path, lambda: self._over)
        core = self._core
        living = None if core.turn.following else Living(core.machine.leases.get, core.turn.now_s())
        return partial(etcd_copy, engine, folder, lambda: self._over, living)

    async def _send_file(self, loop: asyncio.AbstractEventLoop, snapshots: Snapshots, file: BinaryIO) -> None:
        left_bytes = file.seek(0, 2)
        file.seek(0)
        digest = hashlib.sha256()

        def read() -> bytes:
            data = file.read(READ_BYTES)
            digest.update(data)
            return data

        while left_bytes and not self._over:
            data = await loop.run_in_executor(snapshots.threads, read)
            if not data:
                raise EtcdError(Code.DATA_LOSS, "snapshot: the copy is shorter than it was")
            replies = []
            for start in range(0, len(data), PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                left_bytes -= len(piece)
                replies.append(_reply(piece, left_bytes))
            await self._drained(loop)
            if not self._over:
                self._call.send(replies)
                self._sent_bytes += len(data)
        if not self._over:
            self._call.send([_reply(digest.digest(), 0)])

    async def _drained(self, loop: asyncio.AbstractEventLoop) -> None:
        """Returns when no more than BACKLOG_BYTES wait for the peer, or the call has ended; ends it if that is late."""
        looked_s = loop.time()
        while not self._over and self._call.backlog_bytes > BACKLOG_BYTES:
            now_s = loop.time()
            self.stalled_s += min(now_s - looked_s, LOOK_COUNTS_S_MAX)
            looked_s = now_s
            if self.stalled_s >= limits.SNAPSHOT_READ_S_MAX:
                self.give_up()
                return
            self._awake.clear()
            self._call.wake_when_drained(self)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), LOOK_S)
        self.stalled_s = 0.0

    def give_up(self) -> None:
        """Ends the stream of a peer that reads too slowly."""
        told = {
            "remote-addr": self._call.peer_address,
            "sent-bytes": self._sent_bytes,
            "stalled-s": round(self.stalled_s, 1),
        }
        log.warning("ended a snapshot whose reader is too slow", extra=told)
        self._call.cut_off(errors.SNAPSHOT_NOT_READ.error())


def _make_room(snapshots: Snapshots, shortages: Shortages) -> None:
    """Ends the snapshot that has made no progress for longest. Raises TOO_MANY_REQUESTS if all make progress."""
    slowest = max(snapshots.streams, key=lambda stream: stream.stalled_s, default=None)
    if slowest is None or slowest.stalled_s < limits.SNAPSHOT_YIELD_S:
        shortages.reached(SNAPSHOTS)
        raise errors.TOO_MANY_REQUESTS.error()
    snapshots.streams.discard(slowest)  # its place is given away now, though its file is closed a moment later
    slowest.give_up()


def _reply(blob: bytes, remaining_bytes: int) -> bytes:
    response = rpc_pb2.SnapshotResponse(blob=blob, remaining_bytes=remaining_bytes, version=ETCD_VERSION)
    return response.SerializeToString()
