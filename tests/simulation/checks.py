# SPDX-License-Identifier: Apache-2.0
"""What has to hold of a simulated cluster, looked at from above: the invariants of tenures and of the shared log.

As it happens
- I1, one writer: behind a claim nothing lands but what its own process appends, until the next claim.
- I2, no stale answer: whatever leaves a primary leaves while its claim is the newest in the log. And no two processes
  may answer at one time.
- I3, nothing acknowledged is lost: the rows of a write are in the log when its reply leaves.
- I4, unrevealed: an event is in the log when a watcher is sent it, and is the one that the log has.
- I5, never early: a lease that nobody asked to revoke ends no earlier than its TTL after the last acknowledgement left,
  and none that is older than a claim within 2 s of it. By the fastest of the clocks.
- I7, no resurrection: no acknowledgement of a renewal leaves after the end has landed, unless that was a revoke, which
  may have come in between. (What is called later is looked at in the end.)
- I8: a record lands only behind the record that it names.
- An outage of the engine is no death: no claim is sent until the engine has been back for `claim_s`, but for one behind
  a release.

At the end: `finish` of story.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lessor.api.proto import rpc_pb2 as rpc
from lessor.durable import shared_record
from lessor.durable.shared_record import CLAIM, GOES_ON, RELEASE, Entry
from lessor.state.journal import EventRow
from lessor.state.replay import HAND_OVER_GRACE_S, RECONNECT_GRACE_S
from tests.simulation.passing_on import ToPeer
from tests.simulation.world import Broken

if TYPE_CHECKING:
    from tests.simulation.clients import Doing
    from tests.simulation.process import Process, Reply
    from tests.simulation.story import Story

SLIGHTLY_S = 1e-6


class Checks:
    def __init__(self, story: Story) -> None:
        self._story = story
        self._world = story.world
        self.newest: Entry | None = None
        self._claim: Entry | None = None
        self._claimed_s = 0.0
        self._grace_s = RECONNECT_GRACE_S  # in which that primary ends no older lease
        self.takeovers = 0
        self.revision = 1  # the newest in the log
        self.revisions = [1]  # the newest as of each position
        self.rows: dict[tuple[int, int], EventRow] = {}
        self._doings: dict[bytes, list[Doing]] = {}
        self._promises: dict[int, tuple[float, int]] = {}  # lease -> when its last acknowledgement left, TTL
        self.granted: dict[int, int] = {}  # lease -> position of the record with its grant
        self.ended: dict[int, float] = {}
        self._may_be_revoked: set[int] = set()
        self.tail_lost = False

    # --- the log --------------------------------------------------------------------------------------------------

    def submits(self, process: Process, data: bytes, doings: list[Doing]) -> None:
        if data in self._doings:
            return
        entry = shared_record.decode(data)
        assert entry is not None
        self._doings[data] = doings if entry.kind != CLAIM else []
        engine = self._story.engine
        if entry.kind == CLAIM and engine.up and not process.node.standing.released and not process.clock.frozen_s:
            back_s = self._world.now_s - engine.outage_ended_s
            if back_s * process.clock.rate < process.node.tenure.timing.claim_s:
                raise Broken(f"{process} claims {back_s:.3f} s after an outage of the engine")

    def landed(self, entry: Entry) -> None:
        now_s, newest, claim = self._world.now_s, self.newest, self._claim
        self._world.note("landed", entry)
        if newest is not None and entry.record.previous != newest.chain:
            raise Broken(f"I8: {entry} lands behind {newest}, which it does not name")
        if entry.kind == CLAIM:
            if claim is not None and entry.epoch <= claim.epoch:
                raise Broken(f"I1: {entry} after {claim}")
            self._claim, self._claimed_s = entry, now_s
            goes_on = newest is not None and newest.kind == RELEASE and GOES_ON in newest.texts
            self._grace_s = HAND_OVER_GRACE_S if goes_on else RECONNECT_GRACE_S
            self.takeovers += 1
        elif claim is None or (entry.epoch, entry.node, entry.nonce) != (claim.epoch, claim.node, claim.nonce):
            raise Broken(f"I1: {entry} behind {claim}")
        self.newest = entry
        rows = entry.record.rows
        for row in rows.events:
            if row[0] not in (self.revision, self.revision + 1):
                raise Broken(f"revision {row[0]} after {self.revision}")
            self.revision = row[0]
            self.rows[row[0], row[1]] = row
        self.revisions[entry.number :] = [self.revision] * max(1, len(self.revisions) - entry.number)
        for lease_id, _, _, ended in rows.leases:
            if ended:
                self._ended(lease_id, now_s)
            else:
                self.granted.setdefault(lease_id, entry.number)
        for doing in self._doings.get(entry.data, ()):
            doing.landed_s = now_s

    def known(self, entry: Entry) -> None:
        """A process shows the record from now on: before this, a call with an unknown outcome had no effect."""
        for doing in self._doings.get(entry.data, ()):
            if doing.settled_s is None:
                doing.settled_s = self._world.now_s

    def _ended(self, lease_id: int, now_s: float) -> None:
        self.ended[lease_id] = now_s
        if lease_id in self._may_be_revoked:
            return
        fastest = self._story.fastest
        older = self._claim is not None and self.granted.get(lease_id, 0) < self._claim.number
        if older and (now_s - self._claimed_s) * fastest < self._grace_s - SLIGHTLY_S:
            raise Broken(f"I5: lease {lease_id} ends {now_s - self._claimed_s:.3f} s after a claim")
        left_s, ttl_s = self._promises.get(lease_id, (0.0, 0))
        early_s = ttl_s - (now_s - left_s) * fastest
        if early_s > SLIGHTLY_S:
            raise Broken(f"I5: lease {lease_id} ends {early_s:.3f} s early, promised at {left_s:.4f}")

    def lost_tail(self, count: int) -> None:
        """The engine has lost its newest records: from here on others may stand there."""
        self.tail_lost = True
        records = self._story.engine.records
        self.newest = shared_record.decode(records[-1]) if records else None
        self.revision = self.revisions[len(records)]
        self.rows = {at: row for at, row in self.rows.items() if at[0] <= self.revision}
        self.ended = {}
        self._promises = {}
        self._claim = None
        for data in records:
            entry = shared_record.decode(data)
            if entry is not None and entry.kind == CLAIM:
                self._claim = entry
        self._claimed_s = self._world.now_s - 1e3

    # --- what leaves ----------------------------------------------------------------------------------------------

    def served(self, doing: Doing) -> None:
        if isinstance(doing.request, rpc.LeaseRevokeRequest):
            self._may_be_revoked.add(doing.request.ID)

    def leaves(self, process: Process, payload: Any) -> None:
        claim, standing = self._claim, process.node.standing
        if self.tail_lost:
            return
        if process.served is not None and (claim is None or standing.epoch != claim.epoch):
            raise Broken(f"I2: an answer leaves {process} in epoch {standing.epoch}; the newest claim is {claim}")
        if isinstance(payload, int):
            if payload > self.revision:
                raise Broken(f"I4: {process} names revision {payload}; the log has {self.revision}")
        elif isinstance(payload, list):
            for event, _ in payload:
                row = self.rows.get((event.mod_revision, event.sub))
                if row is None or row[2:4] != (event.key, event.value):
                    raise Broken(f"I4: {process} shows {event}, and the log has {row}")
        elif not isinstance(payload, ToPeer):
            self._reply_leaves(process, payload)

    def _reply_leaves(self, process: Process, reply: Reply) -> None:
        now_s, doing = self._world.now_s, reply.doing
        doing.left_s = now_s
        waits = doing.rows and reply.error is None and not isinstance(doing.request, rpc.LeaseKeepAliveRequest)
        if waits and process.served is not None and doing.landed_s is None:
            raise Broken(f"I3: {process} answers {type(doing.request).__name__} before it is in the log")
        if isinstance(doing.request, rpc.LeaseKeepAliveRequest | rpc.LeaseGrantRequest) and reply.error is None:
            lease_id, ttl_s = reply.reply.ID, reply.reply.TTL
            if ttl_s and lease_id in self.ended and lease_id not in self._may_be_revoked:
                raise Broken(f"I7: {process} acknowledges lease {lease_id}, which ended at {self.ended[lease_id]:.4f}")
            if ttl_s:
                self._promises[lease_id] = (now_s, ttl_s)

    # --- after each step ------------------------------------------------------------------------------------------

    def step(self) -> None:
        if self.tail_lost:
            return
        valid = [process for process in self._story.processes if may_answer(process)]
        if len(valid) > 1:
            raise Broken(f"I2: {valid} may answer at one time")


def may_answer(process: Process) -> bool:
    """Whether a step of this process could send an answer as the primary now."""
    return (
        process.served is not None
        and not process.dead
        and not process.paused
        and process.trusts_its_clock
        and process.node.tenure.valid(process.clock.now_s())
    )
