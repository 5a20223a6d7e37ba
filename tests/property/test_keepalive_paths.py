# SPDX-License-Identifier: Apache-2.0
"""The keepalive stream's short cut answers what the state machine answers, in order, and not before it is durable.

Two machines get the same calls. One renews through `KeepAlive`, which remembers requests and pastes replies; the other
through `apply`. Replies, deadlines and rows must be the same.
"""

from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from hypothesis import example, given
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2
from lessor.base.errors import EtcdError
from lessor.server.loop.call import StreamCall
from lessor.server.loop.core import Core
from lessor.server.loop.release import Gate
from lessor.server.observe.metrics import Metrics
from lessor.server.services import keepalive
from lessor.server.services.keepalive import Renewals
from lessor.state.lease import Lease
from lessor.state.machine import Identity, StateMachine

IDS = (1, 127, 128, 2**40 + 5, -5, 2**63 - 1)


class Wire:
    """The other end of the stream."""

    forwarded = False

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self.ended = False

    def send(self, replies: list[bytes]) -> None:
        assert not self.ended
        self.replies += replies

    def finish(self, error: EtcdError | None = None) -> None:
        self.ended = True


class Pair:
    """A machine behind a keepalive stream, and its twin."""

    def __init__(self) -> None:
        self.machine, self.twin = (StateMachine(Identity(2**64 - 1, 7, 2)) for _ in range(2))
        self.now_s = 0.0
        self.gate = Gate(durable=0)
        self.wire = Wire()
        # All is as in a running server but the header, which names the newest revision here, as the twin's does.
        turn = SimpleNamespace(now_s=lambda: self.now_s, renewed=[])
        core = SimpleNamespace(
            machine=self.machine,
            auth=self.machine.auth,
            gate=self.gate,
            turn=turn,
            metrics=Metrics(),
            durable_header_field=self.machine.header_field,
        )
        self.renewals = Renewals()
        self.stream = self.renewals.open(cast(Core, core), cast(StreamCall, self.wire))
        self.expected: list[Any] = []
        self.needs: list[int] = []  # the batch that each reply has to wait for
        self.unanswered: list[tuple[int, Lease]] = []  # renewals whose reply waits, with the batch

    def both(self, request: Any) -> None:
        for machine in (self.machine, self.twin):
            try:
                machine.apply(request, self.now_s)
            except EtcdError:
                continue

    def renew(self, ids: list[int]) -> None:
        newest = 0
        for lease_id in ids:
            request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)
            self.expected.append(self.twin.apply(request, self.now_s))
            lease = self.twin.leases.get(lease_id)
            need = lease.batch if lease else self.twin.journal.newest_with_rows
            newest = max(newest, need, self.needs[-1] if self.needs else 0)
            self.needs.append(newest)
            if lease is not None and newest > self.gate.durable:
                self.unanswered.append((newest, lease))
        self.stream.on_messages([rpc_pb2.LeaseKeepAliveRequest(ID=i).SerializeToString() for i in ids])

    def commit(self) -> None:
        for machine in (self.machine, self.twin):
            batch = machine.journal.seal(self.now_s)
            machine.leases.acknowledged(batch.leases_touched, self.now_s)
        # A promise counts from its reply, so those that waited behind another's batch count from now as well.
        answered = [lease for need, lease in self.unanswered if need <= batch.number]
        self.unanswered = [(need, lease) for need, lease in self.unanswered if need > batch.number]
        self.twin.leases.acknowledged(answered, self.now_s)
        self.gate.committed(batch.number)

    def check(self) -> None:
        replies = [rpc_pb2.LeaseKeepAliveResponse.FromString(reply) for reply in self.wire.replies]
        allowed = sum(1 for need in self.needs if need <= self.gate.durable)
        assert replies == self.expected[:allowed]
        for one, other in zip(self.machine.leases.by_deadline(), self.twin.leases.by_deadline(), strict=True):
            assert (one.id, one.deadline_s, one.saved_deadline_s, one.batch) == (
                other.id, other.deadline_s, other.saved_deadline_s, other.batch,
            )  # fmt: skip


_IDS = st.sampled_from(IDS)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), _IDS, st.integers(1, 90)),
        st.tuples(st.just("revoke"), _IDS),
        st.tuples(st.just("put"), _IDS),
        st.tuples(st.just("renew"), st.lists(_IDS, min_size=1, max_size=6)),
        st.tuples(st.just("renew"), st.lists(_IDS, min_size=1, max_size=6)),
        st.tuples(st.just("wait"), st.floats(0, 40)),
        st.tuples(st.just("commit")),
    ),
    max_size=40,
)


@given(_STEPS, st.sampled_from([0, 1, 2, keepalive.REMEMBERED_MAX]))
@example([("grant", 1, 2), ("commit",), ("put", 1), ("renew", [2, 1]), ("wait", 1.0)], 2)
def test_the_short_cut_and_the_state_machine_agree(steps: list[Any], remembered_max: int) -> None:
    with mock.patch.object(keepalive, "REMEMBERED_MAX", remembered_max):
        agree(steps)


def test_a_request_with_more_in_it_is_answered_and_not_remembered() -> None:
    """Whoever pads requests with fields that nobody knows does not fill the memory of all streams."""
    pair = Pair()
    pair.both(rpc_pb2.LeaseGrantRequest(ID=2**63 - 1, TTL=60))
    pair.renew([2**63 - 1])
    assert len(pair.renewals.remembered) == 1
    padded = rpc_pb2.LeaseKeepAliveRequest(ID=2**63 - 1).SerializeToString() + b"\x7a\x05extra"
    pair.stream.on_messages([padded])
    pair.commit()
    assert pair.wire.replies[1] == pair.wire.replies[0]
    assert len(pair.renewals.remembered) == 1


def agree(steps: list[Any]) -> None:
    pair = Pair()
    for step in steps:
        match step:
            case ("grant", lease_id, ttl_s):
                pair.both(rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s))
            case ("revoke", lease_id):
                pair.both(rpc_pb2.LeaseRevokeRequest(ID=lease_id))
            case ("put", lease_id):
                pair.both(rpc_pb2.PutRequest(key=b"k", lease=lease_id))
            case ("renew", ids):
                pair.renew(ids)
            case ("wait", seconds):
                pair.now_s += seconds
                for machine in (pair.machine, pair.twin):
                    machine.expire(pair.now_s, 1000)
            case ("commit",):
                pair.commit()
        pair.check()
    pair.stream.on_requests_end()
    pair.commit()
    pair.check()
    assert len(pair.wire.replies) == len(pair.expected)
    assert pair.wire.ended
