# SPDX-License-Identifier: Apache-2.0
"""The steps of a txn, and the conditions on keys that decide between its two branches.

    from lessor.client import Key, op

    txn = client.transaction().when(Key("seat").missing).then(op.put("seat", "ann")).otherwise(op.get("seat"))

They are messages of the API, so `client.txn` takes them as well.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client._arguments import checked
from lessor.client._enums import SortOrder, SortTarget
from lessor.client._requests import Bytes, delete_request, key_range, put_request, range_request, to_bytes

V = TypeVar("V")


@checked
def put(
    key: Bytes,
    value: Bytes = b"",
    *,
    lease_id: int = 0,
    prev_kv: bool = False,
    ignore_value: bool = False,
    ignore_lease: bool = False,
) -> rpc.RequestOp:
    """Writes a key, as `Client.put` does."""
    return rpc.RequestOp(request_put=put_request(key, value, lease_id, prev_kv, ignore_value, ignore_lease))


@checked
def get(
    key: Bytes,
    *,
    range_end: Bytes = b"",
    prefix: bool = False,
    limit: int = 0,
    sort_order: SortOrder | int = SortOrder.NONE,
    sort_target: SortTarget | int = SortTarget.KEY,
    keys_only: bool = False,
    count_only: bool = False,
) -> rpc.RequestOp:
    """Reads keys, as `Client.get` does. For its other options: `RequestOp(request_range=RangeRequest(...))`."""
    request = range_request(
        key,
        range_end=range_end,
        prefix=prefix,
        limit=limit,
        sort_order=sort_order,
        sort_target=sort_target,
        keys_only=keys_only,
        count_only=count_only,
    )
    return rpc.RequestOp(request_range=request)


@checked
def delete(key: Bytes, *, range_end: Bytes = b"", prefix: bool = False, prev_kv: bool = False) -> rpc.RequestOp:
    """Deletes keys, as `Client.delete` does."""
    return rpc.RequestOp(request_delete_range=delete_request(key, range_end, prefix, prev_kv))


@checked
def txn(
    compare: Sequence[rpc.Compare] = (),
    success: Sequence[rpc.RequestOp] = (),
    failure: Sequence[rpc.RequestOp] = (),
) -> rpc.RequestOp:
    """A txn inside of a txn."""
    return rpc.RequestOp(request_txn=rpc.TxnRequest(compare=compare, success=success, failure=failure))


def _number(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"it is compared with a whole number, not {type(value).__name__}")
    return value


class Term(Generic[V]):
    """A property of a key. Its comparison with a value (==, !=, <, >) is a condition of a txn."""

    __slots__ = ("_compare",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, compare: Callable[["rpc.Compare.CompareResult", V], rpc.Compare]) -> None:
        self._compare = compare

    def __eq__(self, other: V) -> rpc.Compare:  # type: ignore[override]
        return self._compare(rpc.Compare.EQUAL, other)

    def __ne__(self, other: V) -> rpc.Compare:  # type: ignore[override]
        return self._compare(rpc.Compare.NOT_EQUAL, other)

    def __lt__(self, other: V) -> rpc.Compare:
        return self._compare(rpc.Compare.LESS, other)

    def __gt__(self, other: V) -> rpc.Compare:
        return self._compare(rpc.Compare.GREATER, other)


@checked
class Key:
    """A key in conditions: `Key("a").value == "x"`, `Key("a").version > 3`, `Key("a").missing`.

    With `range_end` or `prefix` the condition is on each key of the range. The numbers of a key that does not exist
    are 0; its value is neither equal nor unequal to anything.
    """

    __slots__ = ("_end", "_key")

    def __init__(self, key: Bytes, *, range_end: Bytes = b"", prefix: bool = False) -> None:
        self._key, self._end = key_range(key, range_end, prefix)

    @property
    def value(self) -> Term[Bytes]:
        return Term(lambda result, other: self._condition(result, rpc.Compare.VALUE, value=to_bytes(other)))

    @property
    def version(self) -> Term[int]:
        """How often it was put since it was created."""
        return Term(lambda result, other: self._condition(result, rpc.Compare.VERSION, version=_number(other)))

    @property
    def create_revision(self) -> Term[int]:
        return Term(lambda result, other: self._condition(result, rpc.Compare.CREATE, create_revision=_number(other)))

    @property
    def mod_revision(self) -> Term[int]:
        return Term(lambda result, other: self._condition(result, rpc.Compare.MOD, mod_revision=_number(other)))

    @property
    def lease_id(self) -> Term[int]:
        return Term(lambda result, other: self._condition(result, rpc.Compare.LEASE, lease=_number(other)))

    @property
    def missing(self) -> rpc.Compare:
        return self.create_revision == 0

    @property
    def exists(self) -> rpc.Compare:
        return self.create_revision > 0

    def _condition(
        self, result: "rpc.Compare.CompareResult", target: "rpc.Compare.CompareTarget", **given: Any
    ) -> rpc.Compare:
        return rpc.Compare(key=self._key, range_end=self._end, result=result, target=target, **given)
