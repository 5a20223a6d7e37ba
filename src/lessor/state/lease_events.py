# SPDX-License-Identifier: Apache-2.0
"""What became of leases, for those who watch that: grants, expiries, revocations, in the order in which they happened.

Laws
- While nobody watches, nothing is kept: the state machine asks `watchers` and goes on.
- What is told goes to those who watched when it happened: take it before somebody joins.

Theory of operation. The state machine adds an event with each grant and end; the server takes all of a turn at its end,
as one response that is encoded once for all watchers, and lets it pass the gate. Nothing piles up here.

Does not do: renewals, which are most of what a lease server does and mean that nothing changes; history.
"""

from __future__ import annotations

from typing import Any, Final

from lessor.api.proto import leases_pb2, rpc_pb2
from lessor.state.lease import Lease

GRANTED: Final = leases_pb2.LeaseEvent.GRANTED
EXPIRED: Final = leases_pb2.LeaseEvent.EXPIRED
REVOKED: Final = leases_pb2.LeaseEvent.REVOKED


class LeaseEvents:
    """Who watches, and what they have not been told yet."""

    __slots__ = ("pending", "watchers")

    def __init__(self) -> None:
        self.watchers: set[Any] = set()  # the server's streams
        self.pending: list[leases_pb2.LeaseEvent] = []

    def add(self, kind: leases_pb2.LeaseEvent.Type, lease: Lease, deleted: int = 0, revision: int = 0) -> None:
        """Adds an event. `deleted`: how many keys the end took, in `revision`."""
        self.pending.append(
            leases_pb2.LeaseEvent(
                type=kind, ID=lease.id, TTL=lease.ttl_s, key_count=deleted, revision=revision if deleted else 0
            )
        )

    def take(self, header: rpc_pb2.ResponseHeader) -> tuple[list[Any], bytes]:
        """The watchers, and the encoded response with all that is to be told them."""
        pending, self.pending = self.pending, []
        return list(self.watchers), leases_pb2.LeaseWatchResponse(header=header, events=pending).SerializeToString()
