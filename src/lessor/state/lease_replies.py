# SPDX-License-Identifier: Apache-2.0
"""Replies about leases, as bytes.

Law: nothing here changes a lease or raises.

Does not do: granting, renewing and ending (leases.py), pages of leases (lease_list.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lessor.state.encode import in_pieces, nested, number_field, varint
from lessor.state.lease import Lease
from lessor.state.leases import Lessor


def renewed_fields(lease_id: int, lease: Lease | None) -> bytes:
    """The fields after the header in the reply to a renewal. `lease` None: it is gone, and the reply has no TTL."""
    fields = number_field(b"\x10", lease_id)
    return fields if lease is None else fields + b"\x18" + varint(lease.ttl_s)


def time_to_live_reply(
    header: bytes, lessor: Lessor, lease_id: int, now_s: float, *, with_keys: bool
) -> bytes | Iterator[bytes]:
    """The reply to a LeaseTimeToLive. The TTL of a lease that is gone is -1. Cost: k log k for k keys shown."""
    reply = header + number_field(b"\x10", lease_id)
    lease = lessor.get(lease_id)
    if lease is None:
        return reply + b"\x18" + varint(-1)
    reply += number_field(b"\x18", lessor.remaining_s(lease, now_s)) + b"\x20" + varint(lease.ttl_s)
    if with_keys and lease.keys:
        return in_pieces(reply, sorted(lease.keys), _keys_field)
    return reply


def leases_reply(header: bytes, lessor: Lessor) -> bytes | Iterator[bytes]:
    """The ids of all leases, soonest deadline first. Cost: O(n log n)."""
    return in_pieces(header, lessor.by_deadline(), _leases_field)


def _keys_field(keys: Sequence[bytes]) -> bytes:
    return b"".join([nested(b"\x2a", key) for key in keys])


def _leases_field(leases: Sequence[Lease]) -> bytes:
    return b"".join([nested(b"\x12", b"\x08" + varint(lease.id)) for lease in leases])
