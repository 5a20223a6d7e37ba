# SPDX-License-Identifier: Apache-2.0
"""Runs a sequence of requests on servers and on the model, and compares every reply.

A sequence must start from nothing, but starting a server takes a second. So servers are used again: `Session` deletes
all keys, revokes all leases, disarms all alarms and compacts; from then on revision `offset + n` of the server is
revision n of a fresh model. Time is real: the sequences bring long TTLs, and remaining times are compared to a second.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import EtcdError
from tests.conformance.grpc_peer import Failure, GrpcPeer
from tests.model import Model
from tests.property.strategies import EVERYTHING, TXN_OPS_MAX, reads_and_transactions, sequences
from tests.property.translate import Translator, comparable

# The speed of a server in another process is not what is tested.
AGAINST_A_SERVER = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# TTLs that do not end while a sequence runs. Clamping is tested apart, by hand.
LONG_TTLS_S = (100, 101, 102, 3600, 3601, 3602, 9_000_000_000, 9_000_000_001, 2**63 - 1)
REAL_TIME_SEQUENCES = st.one_of(sequences(ttls=LONG_TTLS_S, time_passes=False), reads_and_transactions())


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


def _permission_on_nothing(request: Message, model: Model) -> bool:
    if not isinstance(request, rpc.AuthRoleGrantPermissionRequest):
        return False
    end = request.perm.range_end
    return not request.perm.key or (end not in (b"", b"\0") and end <= request.perm.key)


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
        ("3.5.", "3.6."),
        "of a put in a transaction, 3.7 checks the lease before the key, 3.5 and 3.6 the key before the lease",
        _put_with_two_faults,
        skip=False,
    ),
    Difference(
        ("3.5.", "3.6."),
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
    Difference(
        ("3.5.", "3.6."),
        "3.5 and 3.6 have other versions to downgrade to",
        lambda request, model: isinstance(request, rpc.DowngradeRequest),
        skip=True,
    ),
    Difference(
        ("3.5.", "3.6."),
        "3.5 and 3.6 tell root alone whether auth is on",
        lambda request, model: isinstance(request, rpc.AuthStatusRequest),
        skip=True,
    ),
    Difference(
        ("3.5.",),
        "3.5.1 does not tell the revision that HashKV is about",
        lambda request, model: isinstance(request, rpc.HashKVRequest),
        skip=True,
    ),
    Difference(
        ("3.5.",),
        "3.5.1 does not tell the permissions of the role root",
        lambda request, model: isinstance(request, rpc.AuthRoleGetRequest) and request.role == "root",
        skip=True,
    ),
    Difference(
        ("3.5.",),
        "3.5.1 lets the rest of a long password be",
        lambda request, model: len(getattr(request, "password", "")) > 72,
        skip=True,
    ),
    Difference(
        ("3.5.",),
        "3.5.1 grants permissions on ranges that nothing can be in",
        _permission_on_nothing,
        skip=True,
    ),
)


def version_of(server: Server) -> str:
    """What GET /version names as the server's own version."""
    with urllib.request.urlopen(f"{server.client_url}/version", timeout=5) as reply:
        return str(json.load(reply)["etcdserver"])


def differences_of(server: Server) -> list[Difference]:
    """What this server, by its version, is known to do otherwise."""
    version = version_of(server)
    return [known for known in KNOWN_DIFFERENCES if version.startswith(known.versions)]


class Party:
    """A server that takes part in a session. `differences`: those from the model that it is allowed."""

    def __init__(self, peer: GrpcPeer, differences: Sequence[Difference] = ()) -> None:
        self.peer = peer
        self.differences = differences

    def empty(self) -> int:
        """Leaves the server without keys, leases, alarms and history; returns its revision then."""
        call: Callable[[Message], Any] = self.peer.call
        for raised in call(rpc.AlarmRequest()).alarms:
            disarm = rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=raised.memberID, alarm=raised.alarm)
            call(disarm)
        for lease in call(rpc.LeaseLeasesRequest()).leases:
            call(rpc.LeaseRevokeRequest(ID=lease.ID))
        revision = int(call(rpc.DeleteRangeRequest(**EVERYTHING)).header.revision)
        call(rpc.CompactionRequest(revision=revision))  # refused where nothing has happened since the last one
        return revision


class Session:
    """Servers, each made empty, beside one fresh model. The others are compared with the first server."""

    def __init__(self, parties: Sequence[Party], min_lease_ttl_s: int) -> None:
        self._began_s = time.monotonic()
        self.model = Model(min_lease_ttl_s=min_lease_ttl_s, max_txn_ops=TXN_OPS_MAX)
        self.model.apply(rpc.CompactionRequest(revision=1), now=0.0)
        self._parties = [(party, Translator(self.model, offset=party.empty() - 1)) for party in parties]

    def run(self, steps: Sequence[Message]) -> None:
        """Sends each request to all; AssertionError at the first answer that is not the model's."""
        for number, step in enumerate(steps):
            request = self._parties[0][1].placed(step)
            if any(known.skip and known.concerns(request, self.model) for known in self._all_differences()):
                continue
            lenient = [
                any(known.concerns(request, self.model) for known in party.differences) for party, _ in self._parties
            ]
            wanted = self._of_model(request)
            for (party, numbers), either_error in zip(self._parties, lenient, strict=True):
                got = self._of_server(party, numbers, request, wanted)
                if either_error and isinstance(wanted, Failure) and isinstance(got, Failure):
                    continue
                assert got == wanted, f"step {number}: {type(request).__name__} {request}\n{got}\nis not\n{wanted}"
        for party, numbers in self._parties:
            self._compare_watch(party, numbers)

    def _all_differences(self) -> list[Difference]:
        return [known for party, _ in self._parties for known in party.differences]

    def _of_model(self, request: Message) -> Any:
        try:
            return comparable(self.model.apply(request, time.monotonic() - self._began_s))
        except EtcdError as error:
            return Failure.of(error)

    def _of_server(self, party: Party, numbers: Translator, request: Message, wanted: Any) -> Any:
        """The server's answer in the model's numbers."""
        got: Any = party.peer.call(numbers.request(request))
        if isinstance(got, Failure):
            return got
        drawn = isinstance(request, rpc.LeaseGrantRequest) and request.ID == 0
        if drawn and not isinstance(wanted, Failure):
            assert got.ID > 0, f"{got.ID} is no id to draw"
            assert got.ID not in self.model.leases, f"{got.ID} exists already"
            numbers.drew(wanted.ID, got.ID)
        got = numbers.reply(got)
        if isinstance(got, rpc.LeaseTimeToLiveResponse) and abs(got.TTL - wanted.TTL) <= 1:
            got.TTL = wanted.TTL  # by the clocks of two processes, a second may have begun in only one of them
        return got

    def _compare_watch(self, party: Party, numbers: Translator) -> None:
        """Compares what a watch of all keys, from the first revision that is not compacted, sees of the history."""
        start = self.model.compact_revision + 1
        wanted = self.model.events_since(start)
        if not wanted:
            return
        create = rpc.WatchCreateRequest(start_revision=start, prev_kv=True, **EVERYTHING)
        got: list[Message] = []
        with closing(party.peer.watch(numbers.request(rpc.WatchRequest(create_request=create)))) as replies:
            for reply in replies:
                assert not reply.canceled, reply
                got += [numbers.reply(event) for event in reply.events]
                if len(got) >= len(wanted):
                    break
        assert got == wanted
