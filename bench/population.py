# SPDX-License-Identifier: Apache-2.0
"""Leases with a key each, made in numbers: what many benches begin with.

Laws
- Lease IDs are chosen here: six bytes in a message each, so that requests are equally long, and others in each run.
- Everything asked for is checked: each grant's ID and TTL, each transaction's success, each renewal.

Grants go one by one, as the API wants it; keys are put by transactions of 100.
"""

import random
import time
from collections.abc import Sequence

from bench.h2_calls import Address, Keepalives, call_all
from bench.load_loop import Report, WrongReplyError, run_through
from lessor.api.proto import rpc_pb2

GRANT_PATH = "/etcdserverpb.Lease/LeaseGrant"
REVOKE_PATH = "/etcdserverpb.Lease/LeaseRevoke"
TIME_TO_LIVE_PATH = "/etcdserverpb.Lease/LeaseTimeToLive"
RANGE_PATH = "/etcdserverpb.KV/Range"
PUT_PATH = "/etcdserverpb.KV/Put"
TXN_PATH = "/etcdserverpb.KV/Txn"
COMPACT_PATH = "/etcdserverpb.KV/Compact"
PREFIX = b"svc/"
SPAN = PREFIX, b"svc0"  # all keys that are made here
VALUE = b"10.0.0.1:8080;zone=a;weight=100"
TTL_S = 3600
TXN_PUTS = 100  # etcd allows 128


def new_ids(count: int) -> range:
    """IDs that all take six bytes."""
    first = (1 << 41) + random.randrange(1 << 40)
    return range(first, first + count)


def key_of(lease_id: int) -> bytes:
    return PREFIX + b"%013d" % lease_id


def grant(address: Address, ids: Sequence[int], ttl_s: int = TTL_S, report: Report | None = None) -> None:
    def check(number: int, data: bytes) -> None:
        reply = rpc_pb2.LeaseGrantResponse.FromString(data)
        granted = (reply.ID, reply.TTL)
        if granted != (ids[number], ttl_s):
            raise WrongReplyError(f"asked for lease {ids[number]} with {ttl_s} s and got {granted}")

    requests = [rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s) for lease_id in ids]
    call_all(address, GRANT_PATH, requests, check, in_flight=20 if report else 100, report=report)


def put_keys(address: Address, ids: Sequence[int]) -> None:
    """A key to each of the leases."""
    size = TXN_PUTS if len(ids) % TXN_PUTS == 0 else 1
    requests = []
    for first in range(0, len(ids), size):
        puts = [rpc_pb2.PutRequest(key=key_of(it), value=VALUE, lease=it) for it in ids[first : first + size]]
        requests.append(rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=put) for put in puts]))

    def check(number: int, data: bytes) -> None:
        reply = rpc_pb2.TxnResponse.FromString(data)
        if not reply.succeeded or len(reply.responses) != size:
            raise WrongReplyError(f"transaction {number} of {size} puts was answered with {reply}")

    call_all(address, TXN_PATH, requests, check, in_flight=4)


def populate(address: Address, ids: Sequence[int], ttl_s: int = TTL_S) -> None:
    """Grants the leases and puts a key to each."""
    grant(address, ids, ttl_s)
    put_keys(address, ids)


def put_each(
    address: Address,
    pairs: Sequence[tuple[bytes, int]],
    report: Report,
    *,
    connections: int = 10,
    in_flight: int = 20,
    part: int = 0,
) -> None:
    """Puts each key with its lease, one call a key, and fills the report. Each put must have a revision of its own."""
    revisions = set()

    def check(number: int, data: bytes) -> None:
        revisions.add(rpc_pb2.PutResponse.FromString(data).header.revision)

    requests = [rpc_pb2.PutRequest(key=key, value=VALUE, lease=lease_id) for key, lease_id in pairs]
    call_all(
        address,
        PUT_PATH,
        requests,
        check,
        connections=connections,
        in_flight=in_flight,
        report=report,
        part=part,
    )
    if len(revisions) != len(pairs):
        raise WrongReplyError(f"{len(pairs)} puts had {len(revisions)} revisions")


def revoke(address: Address, ids: Sequence[int]) -> None:
    def check(number: int, data: bytes) -> None:
        if rpc_pb2.LeaseRevokeResponse.FromString(data).header.revision < 1:
            raise WrongReplyError(f"the revocation of {ids[number]} was answered with {data!r}")

    call_all(address, REVOKE_PATH, [rpc_pb2.LeaseRevokeRequest(ID=it) for it in ids], check)


def renew(address: Address, ids: Sequence[int], ttl_s: int) -> tuple[float, float]:
    """Renews all of them as fast as it goes; returns when the first was sent and the last answered (monotonic)."""
    first = time.perf_counter()
    client = Keepalives(address, 2_000, ttl_s, ids, once=True)
    run_through([client])
    if client.answered != len(ids):
        raise WrongReplyError(f"{client.answered} of {len(ids)} leases were renewed")
    client.close()
    return first, time.perf_counter()


def check_range(lease_id: int, data: bytes) -> None:
    """That a Range of the lease's key found it as it was put."""
    reply = rpc_pb2.RangeResponse.FromString(data)
    found = [(pair.key, pair.value, pair.lease) for pair in reply.kvs]
    if reply.count != 1 or found != [(key_of(lease_id), VALUE, lease_id)]:
        raise WrongReplyError(f"asked for the key of lease {lease_id} and got {reply}")


def count_keys(address: Address) -> int:
    """How many keys there are, by a linearizable read."""
    counts: list[int] = []
    request = rpc_pb2.RangeRequest(key=SPAN[0], range_end=SPAN[1], count_only=True)
    call_all(
        address,
        RANGE_PATH,
        [request],
        lambda _, data: counts.append(rpc_pb2.RangeResponse.FromString(data).count),
    )
    return counts[0]
