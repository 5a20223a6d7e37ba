# SPDX-License-Identifier: Apache-2.0
"""Requests about keys, from Python's arguments: shared by the client's methods and the steps of a txn.

Law: nothing is checked here that the server checks; the caller gets the server's own error. Wrong types are found
before: `_arguments.py`.
"""

from collections.abc import Sequence
from typing import Final, cast

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import key_range as ranges
from lessor.client._enums import SortOrder, SortTarget

Bytes = bytes | str

FROM_KEY: Final = b"\0"  # as a range end: all keys from the first one on


def to_bytes(text: Bytes) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if not isinstance(text, bytes):
        raise TypeError(f"bytes or str are wanted, not {type(text).__name__}")
    return text


def prefix_end(prefix: Bytes) -> bytes:
    """The range end for all keys that begin with `prefix`: the prefix with its last byte below 255 raised by one.

    FROM_KEY when there is none to raise. An empty prefix means every key; ask for key b"\\0" then.
    """
    return ranges.prefix_end(to_bytes(prefix)) or FROM_KEY


def key_range(key: Bytes, range_end: Bytes, prefix: bool) -> tuple[bytes, bytes]:
    """Key and range end of a request. ValueError when both `range_end` and `prefix` are given."""
    if not prefix:
        return to_bytes(key), to_bytes(range_end)
    if range_end:
        raise ValueError("range_end and prefix exclude each other")
    return to_bytes(key) or b"\0", prefix_end(key)


def put_request(
    key: Bytes, value: Bytes, lease_id: int, prev_kv: bool, ignore_value: bool, ignore_lease: bool
) -> rpc.PutRequest:
    return rpc.PutRequest(
        key=to_bytes(key),
        value=to_bytes(value),
        lease=lease_id,
        prev_kv=prev_kv,
        ignore_value=ignore_value,
        ignore_lease=ignore_lease,
    )


def delete_request(key: Bytes, range_end: Bytes, prefix: bool, prev_kv: bool) -> rpc.DeleteRangeRequest:
    first, end = key_range(key, range_end, prefix)
    return rpc.DeleteRangeRequest(key=first, range_end=end, prev_kv=prev_kv)


def range_request(
    key: Bytes,
    *,
    range_end: Bytes = b"",
    prefix: bool = False,
    limit: int = 0,
    revision: int = 0,
    sort_order: SortOrder | int = SortOrder.NONE,
    sort_target: SortTarget | int = SortTarget.KEY,
    serializable: bool = False,
    keys_only: bool = False,
    count_only: bool = False,
    min_mod_revision: int = 0,
    max_mod_revision: int = 0,
    min_create_revision: int = 0,
    max_create_revision: int = 0,
) -> rpc.RangeRequest:
    first, end = key_range(key, range_end, prefix)
    return rpc.RangeRequest(
        key=first,
        range_end=end,
        limit=limit,
        revision=revision,
        sort_order=cast("rpc.RangeRequest.SortOrder", sort_order),
        sort_target=cast("rpc.RangeRequest.SortTarget", sort_target),
        serializable=serializable,
        keys_only=keys_only,
        count_only=count_only,
        min_mod_revision=min_mod_revision,
        max_mod_revision=max_mod_revision,
        min_create_revision=min_create_revision,
        max_create_revision=max_create_revision,
    )


def watch_request(
    key: Bytes,
    range_end: Bytes,
    prefix: bool,
    start_revision: int,
    prev_kv: bool,
    progress_notify: bool,
    filters: Sequence[int],
) -> rpc.WatchCreateRequest:
    first, end = key_range(key, range_end, prefix)
    return rpc.WatchCreateRequest(
        key=first,
        range_end=end,
        start_revision=start_revision,
        prev_kv=prev_kv,
        progress_notify=progress_notify,
        filters=cast("Sequence[rpc.WatchCreateRequest.FilterType]", filters),
        fragment=True,
    )
