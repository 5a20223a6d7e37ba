# SPDX-License-Identifier: Apache-2.0
"""Replies about leases, as bytes.

Law: nothing here changes a lease or raises.

Does not do: granting, renewing and ending (leases.py), pages of leases (lease_list.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lessor.state.encode import nested, number_field, sorted_pieces, varint
from lessor.state.lease import Lease
from lessor.state.leases import Lessor


def renewed_fields(lease_id: int, lease: Lease | None) -> bytes:
    """The fields after the header in the reply to a renewal. `lease` None: it is gone, and the reply has no TTL."""
    fields = number_field(b"\x10", lease_id)
    return fields if lease is None else fields + b"\x18" + varint(lease.ttl_s)


def time_to_live_reply(header: bytes, lessor: Lessor, lease_id: int, now_s: float) -> bytes:
    """The reply to a LeaseTimeToLive without keys. The TTL of a lease that is gone is -1."""
    lease = lessor.get(lease_id)
    if lease is None:
        return header + number_field(b"\x10", lease_id) + b"\x18" + varint(-1)
    left = number_field(b"\x18", lessor.remaining_s(lease, now_s))
    return header + number_field(b"\x10", lease_id) + left + b"\x20" + varint(lease.ttl_s)


def keys_field(lease: Lease) -> bytes:
    """What the same reply with keys has behind that. Cost: k log k for k keys."""
    return _keys_field(sorted(lease.keys))


def time_to_live_pieces(header: bytes, lessor: Lessor, lease_id: int, now_s: float) -> Iterator[bytes]:
    """The reply with keys, in steps. It shows the keys that the lease has at the call."""
    lease = lessor.get(lease_id)
    keys = [] if lease is None else list(lease.keys)
    return sorted_pieces(time_to_live_reply(header, lessor, lease_id, now_s), keys, _keys_field)


def leases_reply(header: bytes, lessor: Lessor) -> bytes:
    """The ids of all leases, soonest deadline first. Cost: O(n log n)."""
    return header + b"".join([_lease_field(lease.id) for lease in lessor.by_deadline()])


def leases_pieces(header: bytes, lessor: Lessor) -> Iterator[bytes]:
    """The same in steps. It shows the leases that live at the call, and their order then."""
    # The number keeps leases with one deadline in the order in which they were granted.
    parts = [(lease.deadline_s, number, lease.id) for number, lease in enumerate(lessor)]
    return sorted_pieces(header, parts, _leases_field)


def _keys_field(keys: Sequence[bytes]) -> bytes:
    return b"".join([nested(b"\x2a", key) for key in keys])


def _leases_field(leases: Sequence[tuple[float, int, int]]) -> bytes:
    return b"".join([_lease_field(lease_id) for _, _, lease_id in leases])


def _lease_field(lease_id: int) -> bytes:
    return nested(b"\x12", b"\x08" + varint(lease_id))
