# SPDX-License-Identifier: Apache-2.0
"""Servers that are broken on purpose: `python -m tests.linear.broken WAY serve ...` is `lessor serve` with one fault.

They prove that the checks can fail. Each way puts something in the place of a part of the server before that starts;
nothing of it is in the server itself.
"""

import asyncio
import random
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

from lessor.durable.file_log import FileLog
from lessor.durable.record import Changes
from lessor.server.loop.committer import Committer
from lessor.server.loop.release import Gate
from lessor.server.services import keepalive
from lessor.server.services.keepalive import KeepAlive, Renewals
from lessor.server.services.watch import WatchStream
from lessor.state import kv, lease_replies, txn
from lessor.state.leases import Lessor
from lessor.state.machine import StateMachine
from lessor.state.watch_hub import WatchHub

SLOW_DISK_S, LATE_REPLY_S = 0.03, 0.3
ONE_IN = 10


def now_and_then() -> bool:
    return random.randrange(ONE_IN) == 0


def early_replies() -> None:
    """Replies and events leave before their batch is on disk."""
    commit = Committer._commit

    def slowly(self: Committer, batch: Any) -> None:
        time.sleep(SLOW_DISK_S)
        commit(self, batch)

    def at_once(self: Gate, batch: int, outlet: Any, payload: Any) -> None:
        outlet.deliver(payload)

    put(Committer, "_commit", slowly)
    put(Gate, "hold", at_once)


def stale_reads() -> None:
    """Now and then a read of one key shows the version before the newest."""
    read = kv.range_reply

    def from_the_past(store: Any, request: Any, header: bytes) -> Any:
        event = store.get(request.key)
        before = event.previous if event is not None else None
        if before is None or before.value is None or request.range_end or request.revision or not now_and_then():
            return read(store, request, header)
        return header + kv.kvs_field([before]) + b"\x20\x01"

    put(kv, "range_reply", from_the_past)


def lost_compares() -> None:
    """Now and then a compare of a value holds that does not."""
    holds = txn._holds
    put(txn, "_holds", lambda store, compare: holds(store, compare) or (compare.target == 3 and now_and_then()))


def forgotten_renewals() -> None:
    """A renewal is acknowledged and moves no deadline."""
    put(Lessor, "renew", lambda self, lease_id, now_s: self.get(lease_id))


class _LateCall:
    """A call whose replies leave late."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def send(self, replies: Any) -> None:
        asyncio.get_running_loop().call_later(LATE_REPLY_S, self._call.send, replies)

    def finish(self, error: Any) -> None:
        asyncio.get_running_loop().call_later(LATE_REPLY_S, self._call.finish, error)


def late_acknowledgements() -> None:
    """The reply to a renewal leaves long after its TTL has begun to count."""
    put(Renewals, "open", lambda self, core, call: KeepAlive(core, _LateCall(call), self))  # type: ignore[arg-type]


def dropped_events() -> None:
    """Now and then the live watchers are not sent a revision."""
    notify = WatchHub.notify

    def silently(self: WatchHub, revision: int, events: Any, previous: Any) -> None:
        if not now_and_then():
            notify(self, revision, events, previous)

    put(WatchHub, "notify", silently)


def doubled_events() -> None:
    """Now and then a watch is sent a revision twice."""
    send = WatchStream.on_changes

    def twice(self: WatchStream, watchers: Any, changes: Any) -> None:
        for _ in range(1 + now_and_then()):
            send(self, watchers, changes)

    put(WatchStream, "on_changes", twice)


def wrong_prev_kv() -> None:
    """Now and then the key before an event is left out."""
    notify = WatchHub.notify

    def forgetting(self: WatchHub, revision: int, events: Any, previous: Any) -> None:
        notify(self, revision, events, [None] * len(events) if now_and_then() else previous)

    put(WatchHub, "notify", forgetting)


def skipped_record() -> None:
    """A start leaves out what the newest record of the log says."""
    read = FileLog.read

    def all_but_the_last(self: FileLog, after: int, chain: bytes) -> Any:
        records = read(self, after, chain)
        if records:
            last = records[-1]
            last.rows = Changes(last.rows.number, last.rows.clock_s)
        return records

    put(FileLog, "read", all_but_the_last)


def half_an_end() -> None:
    """A lease that ends leaves its last key behind."""
    delete = StateMachine._delete_keys

    def all_but_one(self: StateMachine, lease: Any) -> int:
        lease.keys = set(sorted(lease.keys)[:-1])
        return delete(self, lease) if lease.keys else 0

    put(StateMachine, "_delete_keys", all_but_one)


def revived_leases() -> None:
    """A renewal of a lease that has ended is answered as if it lived."""
    fields = lease_replies.renewed_fields

    class Living:
        ttl_s = 2

    put(keepalive, "renewed_fields", lambda lease_id, lease: fields(lease_id, lease or Living()))  # type: ignore[arg-type]


WAYS: dict[str, Callable[[], None]] = {
    way.__name__: way
    for way in (
        early_replies,
        stale_reads,
        lost_compares,
        forgotten_renewals,
        late_acknowledgements,
        dropped_events,
        doubled_events,
        wrong_prev_kv,
        skipped_record,
        half_an_end,
        revived_leases,
    )
}


def put(place: Any, name: str, what: Any) -> None:
    assert hasattr(place, name), f"{place} has no {name}: the fault would be none"
    setattr(place, name, what)


if __name__ == "__main__":
    WAYS[sys.argv.pop(1)]()
    runpy.run_module("lessor", run_name="__main__")
