# SPDX-License-Identifier: Apache-2.0
"""Runs a sequence of requests on a server and on the model, and compares every reply.

A sequence must start from nothing, but starting a server takes a second. So one server is used again: `Session` deletes
all keys, revokes all leases, disarms all alarms and compacts; from then on revision `offset + n` of the server is
revision n of a fresh model. Time is real: the sequences bring long TTLs, and remaining times are compared to a second.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import EtcdError
from lessor.testing.model import Model
from tests.conformance.grpc_peer import Failure, GrpcPeer
from tests.property.strategies import EVERYTHING, TXN_OPS_MAX
from tests.property.translate import Translator, comparable

# TTLs that do not end while a sequence runs. Clamping is tested apart, by hand.
LONG_TTLS_S = (100, 101, 102, 3600, 3601, 3602, 9_000_000_000, 9_000_000_001, 2**63 - 1)


class Server(Protocol):
    """What the tests need to know of a running server."""

    client_url: str
    min_lease_ttl_s: int

    @property
    def address(self) -> str: ...


@dataclass(frozen=True)
class Difference:
    """Where a server is known to answer otherwise than the model.

    `concerns(request, model)` finds the requests. `skip`: they are not sent at all, because the server would reach
    another state, or die. Otherwise both have to answer an error, and which one is not compared.
    """

    versions: tuple[str, ...]  # beginnings of the server's version
    reason: str
    concerns: Callable[[Message, Model], bool]
    skip: bool


def _operations(request: Message) -> list[rpc.RequestOp]:
    """Every operation of a transaction, at any depth, on any branch."""
    if not isinstance(request, rpc.TxnRequest):
        return []
    found = []
    for op in [*request.success, *request.failure]:
        found.append(op)
        found += _operations(op.request_txn)
    return found


def _unknown_sort(request: Message, model: Model) -> bool:
    ranges = [op.request_range for op in _operations(request)]
    ranges += [request] if isinstance(request, rpc.RangeRequest) else []
    return any(asked.sort_order > 2 or asked.sort_target > 4 for asked in ranges)


def _put_may_miss_its_key(request: Message, model: Model) -> bool:
    operations = _operations(request)
    return any(op.HasField("request_delete_range") for op in operations) and any(
        op.request_put.ignore_value or op.request_put.ignore_lease for op in operations
    )


def _checks_of_both_kinds(request: Message, model: Model) -> bool:
    return any(op.request_range.revision for op in _operations(request)) and any(
        op.request_put.lease or op.request_put.ignore_value or op.request_put.ignore_lease
        for op in _operations(request)
    )


def _put_with_two_faults(request: Message, model: Model) -> bool:
    return any(op.request_put.lease and op.request_put.ignore_value for op in _operations(request))


def _nested_put_out_of_space(request: Message, model: Model) -> bool:
    if not isinstance(request, rpc.TxnRequest) or not model.alarms:
        return False
    direct = [*request.success, *request.failure]
    return not any(op.HasField("request_put") for op in direct) and any(
        op.HasField("request_put") for op in _operations(request)
    )


def _keys_only(request: Message, model: Model) -> bool:
    ranges = [op.request_range for op in _operations(request)]
    ranges += [request] if isinstance(request, rpc.RangeRequest) else []
    return any(asked.keys_only for asked in ranges)


KNOWN_DIFFERENCES = (
    Difference(
        ("3.5.",),
        "3.5.1 does not check sort options; an unknown target kills it",
        _unknown_sort,
        skip=True,
    ),
    Difference(
        ("3.",),
        "a put with ignore_value or ignore_lease whose key the same transaction has deleted kills etcd",
        _put_may_miss_its_key,
        skip=True,
    ),
    Difference(
        ("3.5.",),
        "3.5.1 checks all puts of a transaction before its ranges; since 3.6 the first faulty operation is told",
        _checks_of_both_kinds,
        skip=False,
    ),
    Difference(
        ("3.7.",),
        "of a put in a transaction, 3.7 checks the lease before the key, 3.5 and 3.6 the key before the lease",
        _put_with_two_faults,
        skip=False,
    ),
    Difference(
        ("3.7.",),
        "3.7 answers keys_only from its index, which does not know the keys' leases",
        _keys_only,
        skip=True,
    ),
    Difference(
        ("3.5.",),
        "out of space, 3.5.1 lets puts pass that stand only in nested transactions",
        _nested_put_out_of_space,
        skip=True,
    ),
)


def version_of(server: Server) -> str:
    """What GET /version names as the server's own version."""
    with urllib.request.urlopen(f"{server.client_url}/version", timeout=5) as reply:
        return str(json.load(reply)["etcdserver"])


class Session:
    """One server, made empty, beside a fresh model. `differences`: those that this server is allowed."""

    def __init__(self, peer: GrpcPeer, min_lease_ttl_s: int, differences: Sequence[Difference] = ()) -> None:
        self._peer = peer
        self._differences = differences
        self._began_s = time.monotonic()
        self.model = Model(min_lease_ttl_s=min_lease_ttl_s, max_txn_ops=TXN_OPS_MAX)
        self.model.apply(rpc.CompactionRequest(revision=1), now=0.0)
        self.numbers = Translator(self.model, offset=self._empty() - 1)

    def _empty(self) -> int:
        """Leaves the server without keys, leases, alarms and history; returns its revision then."""
        call: Callable[[Message], Any] = self._peer.call
        for raised in call(rpc.AlarmRequest()).alarms:
            call(
                rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=raised.memberID, alarm=raised.alarm),
            )
        for lease in call(rpc.LeaseLeasesRequest()).leases:
            call(rpc.LeaseRevokeRequest(ID=lease.ID))
        revision = int(call(rpc.DeleteRangeRequest(**EVERYTHING)).header.revision)
        call(rpc.CompactionRequest(revision=revision))  # refused where nothing has happened since the last one
        return revision

    def run(self, steps: Sequence[Message]) -> None:
        """Sends each request to both; AssertionError at the first answer that differs."""
        for number, step in enumerate(steps):
            request = self.numbers.placed(step)
            known = [difference for difference in self._differences if difference.concerns(request, self.model)]
            if any(difference.skip for difference in known):
                continue
            wanted = self._of_model(request)
            got = self._of_server(request, wanted)
            if known and isinstance(wanted, Failure) and isinstance(got, Failure):
                continue
            assert got == wanted, f"step {number}\n{type(request).__name__} {request}\nserver: {got}\nmodel: {wanted}"
        self.compare_watch()

    def _of_model(self, request: Message) -> Any:
        try:
            return comparable(self.model.apply(request, time.monotonic() - self._began_s))
        except EtcdError as error:
            return Failure.of(error)

    def _of_server(self, request: Message, wanted: Any) -> Any:
        got: Any = self._peer.call(self.numbers.request(request))
        if isinstance(got, Failure):
            return got
        drawn = isinstance(request, rpc.LeaseGrantRequest) and request.ID == 0
        if drawn and not isinstance(wanted, Failure):
            assert got.ID > 0, f"{got.ID} is no id to draw"
            assert got.ID not in self.model.leases, f"{got.ID} exists already"
            self.numbers.drew(wanted.ID, got.ID)
        got = self.numbers.reply(got)
        if isinstance(got, rpc.LeaseTimeToLiveResponse) and abs(got.TTL - wanted.TTL) <= 1:
            got.TTL = wanted.TTL  # by the clocks of two processes, a second may have begun in only one of them
        return got

    def compare_watch(self) -> None:
        """Compares what a watch of all keys, from the first revision that is not compacted, sees of the history."""
        start = self.model.compact_revision + 1
        wanted = self.model.events_since(start)
        if not wanted:
            return
        create = rpc.WatchCreateRequest(start_revision=start, prev_kv=True, **EVERYTHING)
        got: list[Message] = []
        replies = self._peer.watch(self.numbers.request(rpc.WatchRequest(create_request=create)))
        for reply in replies:
            assert not reply.canceled, reply
            got += [self.numbers.reply(event) for event in reply.events]
            if len(got) >= len(wanted):
                replies.close()  # type: ignore[attr-defined]
                break
        assert got == wanted


def differences_of(server: Server) -> list[Difference]:
    version = version_of(server)
    return [known for known in KNOWN_DIFFERENCES if version.startswith(known.versions)]
