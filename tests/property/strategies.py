# SPDX-License-Identifier: Apache-2.0
"""Random sequences of KV, Lease and Alarm requests: valid, on the edge, and malformed.

Few keys, few leases, few values, so that requests meet each other. What is only known while a sequence runs (the
current revision, the compacted one, the lease id that the server drew last) is written as a placeholder; `translate`
puts the number of the moment in. So one sequence fits any server, and a failing one can be read and replayed.
"""

from typing import Any, NamedTuple

from google.protobuf.message import Message
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.limits import LEASE_TTL_S_MAX

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

# Placeholders. A number up to NEAR away from one of the two revisions means "that far from it".
CURRENT = 1 << 50
COMPACTED = 1 << 51
NEAR = 1 << 20
NEWEST_LEASE = 1 << 52

EVERYTHING: Any = {"key": b"\0", "range_end": b"\0"}  # the range of all keys
TXN_OPS_MAX = 6  # of the servers under test: small, so that sequences reach it
UNKNOWN = 9  # a number that none of the enums has

KEYS = (b"\x00", b"a", b"a\x00", b"ab", b"b", b"c", b"\xff", b"\xff\xff")
LEASES = (1, 2, 7, -3, INT64_MAX, INT64_MIN, NEWEST_LEASE)
TTLS = (10, 60, 61, 100, 3600, 1, 2, 3, 0, -1, INT64_MIN, LEASE_TTL_S_MAX, LEASE_TTL_S_MAX + 1, INT64_MAX)


class Advance(NamedTuple):
    """Time passes; then leases end, at most `leases_max` at a time, unless the machine is busy elsewhere."""

    seconds: float
    leases_max: int  # 0: nobody looks after the leases for now


def mostly(common: Any, rare: Any, share: int = 8) -> st.SearchStrategy[Any]:
    """`rare` about once in `share` draws, otherwise `common`; hypothesis shrinks towards `common`."""
    return st.integers(1, share).flatmap(lambda drawn: rare if drawn == share else common)


def weighted(*kinds: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Each kind as often as its weight says. `st.one_of` would count the branches inside its branches, too."""
    return st.sampled_from([kind for weight, kind in kinds for _ in range(weight)]).flatmap(lambda kind: kind)


keys = mostly(st.sampled_from(KEYS), st.just(b""), 60)
# b"" is a single key, b"\0" everything from the key on; the others are the end or, below the key, an empty range.
range_ends = st.one_of(st.just(b""), st.just(b"\0"), st.sampled_from(KEYS))
values = st.sampled_from((b"", b"x", b"y", b"\x00\xff"))
flags = mostly(st.just(False), st.just(True), 4)
# Two leases are met often, so that they hold several keys when they end.
lease_ids = st.one_of(st.sampled_from((1, 2)), st.sampled_from((1, 2, NEWEST_LEASE)), st.sampled_from(LEASES))
small_leases = st.sampled_from((0, 0, 1, 2))
leases_of_puts = st.one_of(st.just(0), st.sampled_from((1, 2)), mostly(st.sampled_from((1, 2)), lease_ids, 3))
revisions = st.one_of(
    st.integers(CURRENT - 4, CURRENT),
    st.integers(CURRENT - 3, CURRENT + 1),
    st.integers(COMPACTED - 1, COMPACTED + 4),
    st.sampled_from((1, 2, 3, -1, INT64_MIN, INT64_MAX)),
)
read_revisions = mostly(st.just(0), revisions, 3)
bounds = mostly(st.just(0), revisions, 6)
limits = st.sampled_from((0, 1, 2, 3, -1, INT64_MAX, INT64_MIN))


def _enum(numbers: list[int], unknown_share: int = 30) -> st.SearchStrategy[int]:
    # proto3 enums are open: a newer client may send a number that this server does not know.
    return mostly(st.sampled_from(numbers), st.just(UNKNOWN), unknown_share)


ranges = st.builds(
    rpc.RangeRequest,
    key=keys,
    range_end=range_ends,
    limit=mostly(st.just(0), limits, 3),
    revision=read_revisions,
    sort_order=mostly(st.just(0), _enum([0, 1, 2]), 2),
    sort_target=mostly(st.just(0), _enum([0, 1, 2, 3, 4]), 2),
    serializable=flags,
    keys_only=flags,
    count_only=flags,
    min_mod_revision=bounds,
    max_mod_revision=bounds,
    min_create_revision=bounds,
    max_create_revision=bounds,
)
puts = st.builds(
    rpc.PutRequest,
    key=keys,
    value=mostly(values, st.just(b""), 3),
    lease=leases_of_puts,
    prev_kv=flags,
    ignore_value=mostly(st.just(False), st.just(True), 10),
    ignore_lease=mostly(st.just(False), st.just(True), 10),
)
deletes = st.builds(rpc.DeleteRangeRequest, key=keys, range_end=range_ends, prev_kv=flags)
compactions = st.builds(
    rpc.CompactionRequest, revision=st.one_of(revisions, st.integers(COMPACTED + 1, COMPACTED + 3)), physical=flags
)


@st.composite
def compares(draw: st.DrawFn) -> rpc.Compare:
    compare = rpc.Compare(
        key=draw(keys),
        range_end=draw(mostly(st.just(b""), range_ends, 3)),
        result=draw(_enum([0, 1, 2, 3], 8)),  # type: ignore[arg-type]
        target=draw(_enum([0, 1, 2, 3, 4], 8)),  # type: ignore[arg-type]
    )
    # The operand is chosen apart from the target: none, the one that fits, or another one.
    match draw(st.integers(0, 5)):
        case 1:
            compare.version = draw(st.sampled_from((0, 1, 2, -1, INT64_MAX)))
        case 2:
            compare.create_revision = draw(st.one_of(st.just(0), revisions))
        case 3:
            compare.mod_revision = draw(st.one_of(st.just(0), revisions))
        case 4:
            compare.value = draw(values)
        case 5:
            compare.lease = draw(leases_of_puts)
    return compare


def _operation(draw: st.DrawFn, depth: int) -> rpc.RequestOp:
    match draw(st.integers(0, 19)):
        case 0 | 1 | 2 | 3 | 4:
            return rpc.RequestOp(request_range=draw(ranges))
        case 5 | 6 | 7 | 8 | 9 | 10:
            return rpc.RequestOp(request_put=draw(puts))
        case 11 | 12 | 13 | 14:
            return rpc.RequestOp(request_delete_range=draw(deletes))
        case 19 if draw(st.integers(0, 3)) == 3:
            return rpc.RequestOp()
        case _ if depth > 0:
            return rpc.RequestOp(request_txn=_transaction(draw, depth - 1))
        case _:
            return rpc.RequestOp(request_put=draw(puts))


def _transaction(draw: st.DrawFn, depth: int) -> rpc.TxnRequest:
    sizes = mostly(st.sampled_from((0, 1, 1, 2, 2, 3)), st.sampled_from((TXN_OPS_MAX, TXN_OPS_MAX + 1)), 12)
    few = st.sampled_from((0, 0, 0, 1, 1, 2))
    return rpc.TxnRequest(
        compare=[draw(compares()) for _ in range(draw(few))],
        success=[_operation(draw, depth) for _ in range(draw(sizes))],
        failure=[_operation(draw, depth) for _ in range(draw(few))],
    )


@st.composite
def transactions(draw: st.DrawFn) -> rpc.TxnRequest:
    return _transaction(draw, depth=2)


def _clash(draw: st.DrawFn, depth: int) -> rpc.TxnRequest:
    def branch() -> list[rpc.RequestOp]:
        operations = []
        for _ in range(draw(st.sampled_from((0, 1, 1, 2)))):
            key = draw(st.sampled_from((b"a", b"b")))
            match draw(st.sampled_from("pppddrttt")):
                case "p":
                    operations.append(rpc.RequestOp(request_put=rpc.PutRequest(key=key, lease=draw(small_leases))))
                case "d":
                    delete = rpc.DeleteRangeRequest(key=key, range_end=draw(st.sampled_from((b"", b"b", b"c", b"\0"))))
                    operations.append(rpc.RequestOp(request_delete_range=delete))
                case "t" if depth > 0:
                    operations.append(rpc.RequestOp(request_txn=_clash(draw, depth - 1)))
                case _:
                    operations.append(rpc.RequestOp(request_range=rpc.RangeRequest(**EVERYTHING)))
        return operations

    return rpc.TxnRequest(
        compare=[draw(compares()) for _ in range(draw(st.sampled_from((0, 0, 1))))],
        success=branch(),
        failure=branch(),
    )


@st.composite
def clashing_transactions(draw: st.DrawFn) -> rpc.TxnRequest:
    """Without other faults, but two keys meet each other all the time: on one level, on several, on both branches."""
    return _clash(draw, depth=2)


@st.composite
def telling_ranges(draw: st.DrawFn) -> rpc.RangeRequest:
    """Without faults, over all keys, with one or two of the options whose combinations have rules."""
    request = rpc.RangeRequest(
        limit=draw(st.integers(0, 3)), revision=draw(st.sampled_from((0, 0, CURRENT))), **EVERYTHING
    )
    if draw(st.booleans()):
        request.sort_target = draw(st.integers(0, 4))  # type: ignore[assignment]
        request.sort_order = draw(st.integers(0, 2))  # type: ignore[assignment]
    if draw(st.booleans()):
        bound = draw(
            st.sampled_from(("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"))
        )
        setattr(request, bound, draw(st.one_of(st.integers(2, 7), st.integers(CURRENT - 4, CURRENT))))
    return request


def grants(ttls: tuple[int, ...] = TTLS) -> st.SearchStrategy[rpc.LeaseGrantRequest]:
    return st.builds(rpc.LeaseGrantRequest, TTL=st.sampled_from(ttls), ID=st.one_of(st.just(0), lease_ids))


any_lease = mostly(st.one_of(st.sampled_from((1, 2)), lease_ids), st.just(0), 20)
revokes = st.builds(rpc.LeaseRevokeRequest, ID=any_lease)
keepalives = st.builds(rpc.LeaseKeepAliveRequest, ID=any_lease)
times_to_live = st.builds(rpc.LeaseTimeToLiveRequest, ID=any_lease, keys=st.booleans())
listings = st.builds(rpc.LeaseLeasesRequest)
alarms = st.builds(
    rpc.AlarmRequest,
    # Raised rarely, so that most of a sequence has space.
    action=st.sampled_from((0, 1, 2, 2, 2)),
    memberID=st.sampled_from((0, 0, 5)),
    alarm=st.sampled_from((0, 1, 1)),
)
advances = st.builds(
    Advance,
    seconds=st.sampled_from((0.0, 0.5, 1.0, 1.5, 9.0, 30.0, 60.0, 3600.0, 1e10)),
    leases_max=st.sampled_from((1000, 1000, 1, 0)),
)

Step = Message | Advance

# Brings a fresh store to where something can go wrong: leases with keys, a key with versions, a deleted key.
WARM_UP: list[Message] = [
    rpc.LeaseGrantRequest(ID=1, TTL=100),
    rpc.LeaseGrantRequest(ID=2, TTL=3600),
    rpc.PutRequest(key=b"a", value=b"x", lease=1),
    rpc.PutRequest(key=b"b", value=b"y", lease=2),
    rpc.PutRequest(key=b"ab", value=b"x", lease=1),
    rpc.PutRequest(key=b"c", value=b""),
    rpc.PutRequest(key=b"a", value=b"y", lease=1),
    rpc.DeleteRangeRequest(key=b"c"),
]


def sequences(
    *, ttls: tuple[int, ...] = TTLS, time_passes: bool = True, length: int = 25
) -> st.SearchStrategy[list[Any]]:
    """Lists of up to `length` steps. For a server that lives in real time: no `time_passes`, and no short `ttls`."""
    kinds: list[tuple[int, st.SearchStrategy[Any]]] = [
        (6, puts),
        (3, ranges),
        (4, telling_ranges()),
        (3, deletes),
        (5, transactions()),
        (4, clashing_transactions()),
        (2, compactions),
        (5, grants(ttls)),
        (4, revokes),
        (2, keepalives),
        (2, times_to_live),
        (1, listings),
        (1, alarms),
    ]
    if time_passes:
        kinds.append((4, advances))
    steps = weighted(*kinds)
    # The size is drawn apart: left to itself, hypothesis makes most lists short.
    rest = st.integers(1, length).flatmap(lambda size: st.lists(steps, min_size=size, max_size=size))
    return st.builds(list.__add__, st.sampled_from((WARM_UP, [])), rest)


def reads_and_transactions(length: int = 8) -> st.SearchStrategy[list[Any]]:
    """Short sequences of what has the most rules, on keys and leases that are there."""
    steps = st.one_of(
        telling_ranges(), telling_ranges(), clashing_transactions(), clashing_transactions(), puts, revokes
    )
    rest = st.integers(1, length).flatmap(lambda size: st.lists(steps, min_size=size, max_size=size))
    return rest.map(lambda drawn: [*WARM_UP, *drawn])


def _txn(*operations: Message) -> rpc.TxnRequest:
    fields = {
        rpc.RangeRequest: "request_range",
        rpc.PutRequest: "request_put",
        rpc.DeleteRangeRequest: "request_delete_range",
        rpc.TxnRequest: "request_txn",
    }
    named: list[dict[str, Any]] = [{fields[type(operation)]: operation} for operation in operations]
    return rpc.TxnRequest(success=[rpc.RequestOp(**one) for one in named])


_PUT_A = rpc.PutRequest(key=b"a")
_DELETE_ALL = rpc.DeleteRangeRequest(**EVERYTHING)

# Where random sequences come too rarely to rely on them. Each is sent after WARM_UP.
EDGES: dict[str, Message] = {
    # One more than the limit does not fit into 64 bits.
    "limit": rpc.RangeRequest(limit=INT64_MAX, **EVERYTHING),
    "limit in txn": _txn(_PUT_A, rpc.RangeRequest(limit=INT64_MAX, **EVERYTHING)),
    # Without an order, only limit + 1 keys are sorted by the target.
    "limit, target": rpc.RangeRequest(limit=1, sort_target=rpc.RangeRequest.CREATE, **EVERYTHING),
    "limit, target, down": rpc.RangeRequest(limit=1, sort_target=rpc.RangeRequest.MOD, sort_order=2, **EVERYTHING),  # type: ignore[arg-type]
    "limit, target, filter": rpc.RangeRequest(
        limit=1, sort_target=rpc.RangeRequest.VALUE, min_mod_revision=1, **EVERYTHING
    ),
    # A key deleted and put again in one revision is a new key for watchers: its put has no prev_kv.
    "put again": _txn(_DELETE_ALL, _PUT_A),
    "put and deleted": _txn(_PUT_A, _DELETE_ALL),
    # The put's key has gone when its turn comes. etcd dies of it; we refuse, and nothing is done.
    "put of nothing": _txn(_DELETE_ALL, rpc.PutRequest(key=b"a", ignore_value=True)),
    # Deletes of a nested transaction are compared with the puts of later ones, not with those of earlier ones.
    "nested put, nested delete": _txn(_txn(_PUT_A), _txn(rpc.DeleteRangeRequest(key=b"a"))),
    "nested delete, nested put": _txn(_txn(rpc.DeleteRangeRequest(key=b"a")), _txn(_PUT_A)),
    "put, nested delete": _txn(_PUT_A, _txn(rpc.DeleteRangeRequest(key=b"a"))),
    # The error names the first faulty operation, whatever its kind.
    "future range, faulty put": _txn(
        rpc.RangeRequest(key=b"a", revision=CURRENT + 9), rpc.PutRequest(key=b"a", lease=9)
    ),
    "faulty put, future range": _txn(
        rpc.PutRequest(key=b"a", lease=9), rpc.RangeRequest(key=b"a", revision=CURRENT + 9)
    ),
    "ends with its keys": rpc.LeaseRevokeRequest(ID=1),
}
