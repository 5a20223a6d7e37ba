# SPDX-License-Identifier: Apache-2.0
"""Txns: shape, the duplicate rule, compares, checks before any change, and the replies of operations."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import ErrorText, EtcdError
from lessor.state import txn as txn_module
from lessor.state.long_read import LongRead
from lessor.state.machine import Identity, StateMachine
from lessor.state.permissions import Caller, check
from lessor.state.txn import read_txn
from tests.lines_run import lines_run

NOW = 1.0
Op = rpc_pb2.RequestOp


def put(key: bytes, value: bytes = b"v", **more: Any) -> Op:
    return Op(request_put=rpc_pb2.PutRequest(key=key, value=value, **more))


def get(key: bytes, **more: Any) -> Op:
    return Op(request_range=rpc_pb2.RangeRequest(key=key, **more))


def delete(key: bytes, end: bytes = b"", **more: Any) -> Op:
    return Op(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=end, **more))


def txn(*success: Op, compare: tuple[rpc_pb2.Compare, ...] = (), failure: tuple[Op, ...] = ()) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(compare=compare, success=success, failure=failure)


def nested(*success: Op, failure: tuple[Op, ...] = (), compare: tuple[rpc_pb2.Compare, ...] = ()) -> Op:
    return Op(request_txn=txn(*success, failure=failure, compare=compare))


def new_machine(*keys: bytes, max_txn_ops: int = 128) -> StateMachine:
    machine = StateMachine(Identity(1, 2, 3), max_txn_ops=max_txn_ops)
    for key in keys:
        machine.apply(rpc_pb2.PutRequest(key=key, value=b"v"), NOW)
    return machine


def run(machine: StateMachine, request: rpc_pb2.TxnRequest) -> Any:
    return machine.apply(request, NOW)


def refused(machine: StateMachine, request: rpc_pb2.TxnRequest) -> ErrorText:
    before = machine.revision, machine.journal.row_count
    with pytest.raises(EtcdError) as caught:
        machine.apply(request, NOW)
    assert (machine.revision, machine.journal.row_count) == before
    return ErrorText(caught.value.code, caught.value.message)


# --- shape ------------------------------------------------------------------------------------------------------


def test_an_empty_txn_succeeds_and_changes_nothing() -> None:
    machine = new_machine(b"a")
    reply = run(machine, txn())
    assert reply.succeeded
    assert reply.header == rpc_pb2.ResponseHeader(cluster_id=1, member_id=2, revision=2, raft_term=3)
    assert machine.revision == 2


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (txn(Op()), errors.KEY_NOT_FOUND),
        (txn(failure=(Op(),)), errors.KEY_NOT_FOUND),
        (txn(nested(failure=(Op(),))), errors.KEY_NOT_FOUND),
        (txn(compare=(rpc_pb2.Compare(),)), errors.EMPTY_KEY),
        (txn(put(b"")), errors.EMPTY_KEY),
        (txn(get(b"")), errors.EMPTY_KEY),
        (txn(delete(b"")), errors.EMPTY_KEY),
        (txn(put(b"a", b"v", ignore_value=True)), errors.VALUE_PROVIDED),
        (txn(put(b"a", lease=1, ignore_lease=True)), errors.LEASE_PROVIDED),
        (txn(get(b"a", sort_order=3)), errors.INVALID_SORT_OPTION),
        (txn(get(b"a", sort_target=5)), errors.INVALID_SORT_OPTION),
    ],
)
def test_malformed(request_: rpc_pb2.TxnRequest, error: ErrorText) -> None:
    assert refused(new_machine(), request_) == error


def test_size() -> None:
    machine = new_machine(max_txn_ops=3)
    gets = tuple(get(b"a") for _ in range(4))
    assert run(machine, txn(*gets[:3], failure=gets[:3])).succeeded
    assert refused(machine, txn(*gets)) == errors.TOO_MANY_OPS
    assert refused(machine, txn(failure=gets)) == errors.TOO_MANY_OPS
    assert refused(machine, txn(compare=(rpc_pb2.Compare(key=b"a"),) * 4)) == errors.TOO_MANY_OPS
    assert refused(machine, txn(Op(), *gets)) == errors.TOO_MANY_OPS  # counted before looked at


def test_nested_txns_get_what_is_left() -> None:
    machine = new_machine(max_txn_ops=3)
    assert run(machine, txn(nested(get(b"a"), get(b"a")))).succeeded
    assert refused(machine, txn(nested(get(b"a"), get(b"a"), get(b"a")))) == errors.TOO_MANY_OPS
    assert refused(machine, txn(nested(get(b"a"), get(b"a")), failure=(get(b"a"), get(b"a")))) == errors.TOO_MANY_OPS
    assert run(machine, txn(nested(nested(get(b"a"))))).succeeded
    assert refused(machine, txn(nested(nested(nested(get(b"a")))))) == errors.TOO_MANY_OPS


# --- the duplicate rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operations",
    [
        (put(b"a"), put(b"a")),
        (put(b"a"), delete(b"a")),
        (delete(b"a"), put(b"a")),
        (delete(b"a", b"c"), put(b"b")),
        (put(b"b"), delete(b"a", b"c")),
        (put(b"a"), nested(put(b"a"))),
        (nested(put(b"a")), put(b"a")),
        (nested(put(b"a")), nested(put(b"a"))),
        (nested(put(b"a")), nested(failure=(put(b"a"),))),
        (nested(failure=(put(b"a"),)), nested(failure=(put(b"a"),))),
        (nested(put(b"a")), delete(b"a")),
        (nested(delete(b"a", b"b")), put(b"a")),
        (nested(delete(b"a")), nested(put(b"a"))),
        (nested(put(b"a"), put(b"a")),),
        (nested(nested(put(b"a"))), put(b"a")),
        (nested(nested(failure=(delete(b"a"),))), put(b"a")),
    ],
)
def test_overlaps(operations: tuple[Op, ...]) -> None:
    machine = new_machine()
    assert refused(machine, txn(*operations)) == errors.DUPLICATE_KEY
    never = rpc_pb2.Compare(key=b"x", target=rpc_pb2.Compare.VERSION, version=1)
    assert refused(machine, txn(compare=(never,), failure=operations)) == errors.DUPLICATE_KEY
    assert refused(machine, txn(failure=operations)) == errors.DUPLICATE_KEY  # though not taken


@pytest.mark.parametrize(
    "operations",
    [
        (put(b"a"), put(b"b")),
        (delete(b"a"), delete(b"a"), delete(b"a", b"c")),
        (delete(b"a", b"b"), put(b"b")),
        (nested(put(b"a"), failure=(put(b"a"),)),),
        (nested(delete(b"a"), failure=(put(b"a"),)),),
        (nested(put(b"a")), nested(delete(b"a"))),
        (delete(b"c", b"a"), put(b"b")),
        (put(b"a"), get(b"a"), get(b"a")),
    ],
)
def test_no_overlaps(operations: tuple[Op, ...]) -> None:
    assert run(new_machine(), txn(*operations)).succeeded


def test_the_same_key_in_both_branches() -> None:
    assert run(new_machine(), txn(put(b"a"), failure=(put(b"a"),))).succeeded


def test_a_delete_without_upper_bound_is_not_seen_by_the_rule_and_runs_in_its_place() -> None:
    machine = new_machine(b"a", b"b")
    reply = run(machine, txn(delete(b"a", b"\0"), put(b"b", b"new")))
    assert reply.responses[0].response_delete_range.deleted == 2
    got = machine.apply(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"), NOW)
    assert isinstance(got, rpc_pb2.RangeResponse)
    assert [(kv.key, kv.value, kv.version, kv.create_revision) for kv in got.kvs] == [(b"b", b"new", 1, 4)]
    reply = run(machine, txn(put(b"c"), delete(b"a", b"\0")))
    assert reply.responses[1].response_delete_range.deleted == 2


def test_a_put_that_needs_a_key_which_its_txn_deleted_before_is_refused() -> None:
    machine = new_machine(b"a", b"b")
    assert refused(machine, txn(delete(b"b", b"\0"), put(b"b", b"", ignore_value=True))) == errors.KEY_NOT_FOUND
    later = txn(nested(delete(b"a", b"\0")), nested(put(b"b", ignore_lease=True)))
    assert refused(machine, later) == errors.KEY_NOT_FOUND
    assert run(machine, txn(delete(b"b", b"\0"), put(b"a", b"", ignore_value=True))).succeeded
    assert run(machine, txn(put(b"a", b"", ignore_value=True), delete(b"a", b"\0"))).succeeded


# --- compares ---------------------------------------------------------------------------------------------------

C = rpc_pb2.Compare


def holds(machine: StateMachine, *compare: rpc_pb2.Compare) -> bool:
    return bool(run(machine, txn(compare=compare)).succeeded)


@pytest.mark.parametrize(
    ("target", "field", "stored"),
    [(C.VERSION, "version", 2), (C.CREATE, "create_revision", 2), (C.MOD, "mod_revision", 3), (C.LEASE, "lease", 9)],
)
def test_numbers(target: Any, field: str, stored: int) -> None:
    machine = new_machine()
    machine.apply(rpc_pb2.LeaseGrantRequest(ID=9, TTL=60), NOW)
    machine.apply(rpc_pb2.PutRequest(key=b"a"), NOW)
    machine.apply(rpc_pb2.PutRequest(key=b"a", lease=9), NOW)
    for key, number in ((b"a", stored), (b"absent", 0)):
        for given in (number - 1, number, number + 1):
            wanted = {
                C.EQUAL: number == given,
                C.GREATER: number > given,
                C.LESS: number < given,
                C.NOT_EQUAL: number != given,
            }
            for result, truth in wanted.items():
                compare = C(key=key, target=target, result=result)
                setattr(compare, field, given)
                assert holds(machine, compare) == truth


def test_values() -> None:
    machine = new_machine()
    machine.apply(rpc_pb2.PutRequest(key=b"a", value=b"m"), NOW)
    for given, (equal, greater, less) in {
        b"l": (False, True, False),
        b"m": (True, False, False),
        b"n": (False, False, True),
        b"": (False, True, False),
        b"mm": (False, False, True),
    }.items():
        assert holds(machine, C(key=b"a", target=C.VALUE, result=C.EQUAL, value=given)) == equal
        assert holds(machine, C(key=b"a", target=C.VALUE, result=C.GREATER, value=given)) == greater
        assert holds(machine, C(key=b"a", target=C.VALUE, result=C.LESS, value=given)) == less
        assert holds(machine, C(key=b"a", target=C.VALUE, result=C.NOT_EQUAL, value=given)) != equal


@pytest.mark.parametrize("result", [C.EQUAL, C.GREATER, C.LESS, C.NOT_EQUAL])
def test_an_absent_key_has_no_value(result: Any) -> None:
    machine = new_machine()
    assert not holds(machine, C(key=b"a", target=C.VALUE, result=result, value=b""))
    assert not holds(machine, C(key=b"a", range_end=b"b", target=C.VALUE, result=result, value=b""))


def test_a_missing_operand_is_zero() -> None:
    machine = new_machine(b"a")
    assert not holds(machine, C(key=b"a", target=C.VERSION))
    assert holds(machine, C(key=b"b", target=C.VERSION))
    assert holds(machine, C(key=b"b", target=C.CREATE, version=7))  # an operand of another target does not count


def test_ranges_must_hold_for_every_key() -> None:
    machine = new_machine(b"a", b"b")
    machine.apply(rpc_pb2.PutRequest(key=b"b"), NOW)
    assert holds(machine, C(key=b"a", range_end=b"c", target=C.VERSION, result=C.GREATER, version=0))
    assert not holds(machine, C(key=b"a", range_end=b"c", target=C.VERSION, result=C.EQUAL, version=1))
    assert holds(machine, C(key=b"a", range_end=b"b", target=C.VERSION, result=C.EQUAL, version=1))
    assert holds(machine, C(key=b"c", range_end=b"\0", target=C.VERSION, result=C.EQUAL, version=0))
    assert not holds(machine, C(key=b"a", range_end=b"\0", target=C.VERSION, result=C.EQUAL, version=1))


def test_all_compares_must_hold() -> None:
    machine = new_machine(b"a")
    true, false = C(key=b"a", target=C.VERSION, version=1), C(key=b"a", target=C.VERSION, version=2)
    assert holds(machine, true, true)
    assert not holds(machine, true, false)


def test_nested_compares_see_the_state_before_the_txn() -> None:
    machine = new_machine()
    absent = C(key=b"a", target=C.CREATE, create_revision=0)
    reply = run(machine, txn(put(b"a"), nested(put(b"then"), failure=(put(b"else"),), compare=(absent,))))
    assert reply.responses[1].response_txn.succeeded
    assert machine.store.get(b"then") is not None


# --- checks before any change -----------------------------------------------------------------------------------


def test_checks_concern_the_branch_taken_only() -> None:
    machine = new_machine()
    bad = (put(b"a", lease=77), get(b"a", revision=99), put(b"b", b"", ignore_value=True))
    for each in bad:
        assert run(machine, txn(failure=(each,))).succeeded
        assert run(machine, txn(nested(failure=(each,)))).succeeded


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (put(b"z", lease=77), errors.LEASE_NOT_FOUND),
        (put(b"z", b"", ignore_value=True), errors.KEY_NOT_FOUND),
        (put(b"z", ignore_lease=True), errors.KEY_NOT_FOUND),
        (put(b"z", b"", ignore_value=True, lease=77), errors.LEASE_NOT_FOUND),
        (get(b"z", revision=99), errors.FUTURE_REVISION),
        (get(b"z", revision=4), errors.FUTURE_REVISION),  # the txn's own revision is still the future
        (get(b"z", revision=1), errors.COMPACTED),
        (get(b"z", revision=-1), errors.COMPACTED),
    ],
)
def test_one_bad_operation_and_nothing_happens(bad: Op, error: ErrorText) -> None:
    machine = new_machine(b"a", b"b")
    machine.apply(rpc_pb2.CompactionRequest(revision=2), NOW)
    for request in (txn(put(b"c"), bad), txn(put(b"c"), nested(delete(b"a"), bad))):
        assert refused(machine, request) == error
        assert machine.store.get(b"c") is None


def test_minus_one_is_not_compacted_before_the_first_compaction() -> None:
    machine = new_machine(b"a")
    assert run(machine, txn(get(b"a", revision=-1))).responses[0].response_range.count == 1
    assert refused(machine, txn(get(b"a", revision=-2))) == errors.COMPACTED


# --- replies ----------------------------------------------------------------------------------------------------


def test_headers_inside_carry_the_revision_of_their_moment_and_no_more() -> None:
    machine = new_machine(b"a")
    reply = run(
        machine,
        txn(
            get(b"a"),
            delete(b"absent"),
            put(b"b", prev_kv=True),
            get(b"b"),
            nested(delete(b"a", prev_kv=True), get(b"a")),
        ),
    )
    inner = [
        reply.responses[0].response_range,
        reply.responses[1].response_delete_range,
        reply.responses[2].response_put,
        reply.responses[3].response_range,
        reply.responses[4].response_txn.responses[0].response_delete_range,
        reply.responses[4].response_txn.responses[1].response_range,
    ]
    assert [each.header for each in inner] == [rpc_pb2.ResponseHeader(revision=each) for each in (2, 2, 3, 3, 3, 3)]
    assert reply.responses[4].response_txn.HasField("header")
    assert reply.responses[4].response_txn.header == rpc_pb2.ResponseHeader()
    assert reply.header.revision == machine.revision == 3
    assert [(kv.key, kv.mod_revision) for kv in inner[3].kvs] == [(b"b", 3)]
    assert [kv.key for kv in inner[4].prev_kvs] == [b"a"]
    assert inner[5].count == 0


def test_changes_share_a_revision_in_the_order_of_operations() -> None:
    machine = new_machine(b"x")
    machine.journal.seal(NOW)
    run(machine, txn(put(b"c"), put(b"a"), nested(put(b"b")), delete(b"x")))
    rows = machine.journal.seal(NOW).events
    assert [(row[0], row[1], row[2]) for row in rows] == [(3, 0, b"c"), (3, 1, b"a"), (3, 2, b"b"), (3, 3, b"x")]


def test_reads_and_empty_deletes_move_no_revision() -> None:
    machine = new_machine(b"a")
    assert run(machine, txn(get(b"a"), delete(b"none"))).header.revision == 2
    assert machine.revision == 2


class Many:
    """More operations than anybody looks at."""

    def __len__(self) -> int:
        return 1_000_000

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("looked at")


@pytest.mark.parametrize("name", ["compare", "success", "failure"])
def test_too_many_operations_are_counted_and_not_looked_at(name: str) -> None:
    request = SimpleNamespace(**({"compare": [], "success": [], "failure": []} | {name: Many()}))
    with pytest.raises(EtcdError) as caught:
        read_txn(cast(Any, request), 128)
    assert caught.value.message == errors.TOO_MANY_OPS.message


# --- txns in txns: bounded work ---------------------------------------------------------------------------------


def in_tree(operations: list[Op], width: int = 8) -> Op:
    """One operation: all of `operations`, nested as deep as it takes."""
    while len(operations) > 1:
        operations = [nested(*operations[first : first + width]) for first in range(0, len(operations), width)]
    return operations[0]


def deletes(count: int) -> list[Op]:
    return [delete(b"a%05d" % number, b"a%05d\0" % number) for number in range(count)]


def puts(count: int) -> list[Op]:
    return [put(b"b%05d" % number) for number in range(count)]


def down(count: int) -> rpc_pb2.TxnRequest:
    """A chain of txns, each with a delete, around half of the puts."""
    request = txn(in_tree(puts(count)))
    for number in range(20):
        request = txn(delete(b"a%05d" % number, b"a%05d\0" % number), Op(request_txn=request))
    return request


@pytest.mark.inside
@pytest.mark.parametrize(
    "attack",
    [
        lambda count: txn(in_tree(deletes(count)), in_tree(puts(count))),
        lambda count: txn(in_tree([nested(*pair) for pair in zip(deletes(count), puts(count), strict=True)])),
        lambda count: txn(
            in_tree([nested(each, failure=(other,)) for each, other in zip(deletes(count), puts(count), strict=True)])
        ),
        down,
    ],
    ids=["deletes, then puts", "pairs", "both branches", "down"],
)
def test_the_duplicate_rule_costs_in_proportion_to_the_operations(attack: Any) -> None:
    many, few = attack(500), attack(250)
    assert lines_run(txn_module, lambda: read_txn(many, 128)) < 2.5 * lines_run(txn_module, lambda: read_txn(few, 128))


@pytest.mark.parametrize("in_failure", [False, True])
def test_compares_and_operations_of_all_levels_together_are_bounded(in_failure: bool) -> None:
    machine = new_machine(max_txn_ops=8)
    inner = nested(*[get(b"a")] * 3, failure=(get(b"a"),) * 3, compare=(C(key=b"a"),) * 3)  # 10, with itself
    outer = nested(*[inner] * 3, failure=(inner,) * 3, compare=(C(key=b"a"),) * 3)  # 64
    both = (outer, outer)
    assert 8 * limits.TXN_OPS_IN_ALL == 2 * 64

    def around(**more: Any) -> rpc_pb2.TxnRequest:
        return txn(failure=both, **more) if in_failure else txn(*both, **more)

    assert run(machine, around()).header.revision == 1
    assert refused(machine, around(compare=(C(key=b"a"),))) == errors.TOO_MANY_OPS
    # What is beyond the bound is not looked at: the empty operation would be an error of its own.
    assert refused(machine, txn(*both, nested(Op()))) == errors.TOO_MANY_OPS


def test_many_nested_gets_are_answered_in_steps() -> None:
    machine = new_machine(b"a")
    request = txn(in_tree([get(b"a")] * (limits.READ_STEP_KEYS + 1)))
    reply = machine.apply_in_pieces(request, NOW)
    assert isinstance(reply, LongRead)
    reply.close()


def test_a_long_txn_of_a_stranger_is_not_looked_at() -> None:
    machine = new_machine()
    machine.auth.add_user("root", b"", no_password=True)
    machine.auth.add_role("root")
    machine.auth.grant_role("root", "root")
    machine.auth.enable()

    def said(claimed: Any, request: rpc_pb2.TxnRequest) -> str:
        with pytest.raises(EtcdError) as caught:
            check(machine, claimed, request, 1_000_000)
        return caught.value.message

    bad = errors.INVALID_AUTH_TOKEN.error()
    padding = delete(b"x" * limits.STRANGER_TXN_BYTES_MAX)
    for claimed, reason in ((None, errors.USER_EMPTY), (bad, errors.INVALID_AUTH_TOKEN)):
        assert said(claimed, txn(Op())) == errors.KEY_NOT_FOUND.message
        assert said(claimed, txn(Op(), padding)) == reason.message
    assert said(Caller("root", machine.auth.revision), txn(Op(), padding)) == errors.KEY_NOT_FOUND.message
