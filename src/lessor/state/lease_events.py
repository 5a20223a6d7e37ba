# SPDX-License-Identifier: Apache-2.0
"""Lease events: grants, expiries and revocations in their order, for the watchers of leases.

Laws
- While there is no watcher, nothing is kept: the state machine looks at `watchers` first.
- An event goes to the watchers of its moment: take the pending events before a watcher joins.

Theory of operation. The state machine adds an event with each grant and each end. At the end of a turn the server takes
all pending events as one response, encoded once for all watchers, and lets it pass the gate. Nothing piles up here.

Does not do: renewals, which are most of the work of a lease server and end nothing; history.
"""

from __future__ import annotations

from typing import Any, Final

from lessor.api.proto import leases_pb2, rpc_pb2
from lessor.state.lease import Lease

GRANTED: Final = leases_pb2.LeaseEvent.GRANTED
EXPIRED: Final = leases_pb2.LeaseEvent.EXPIRED
REVOKED: Final = leases_pb2.LeaseEvent.REVOKED


class LeaseEvents:
    """The watchers, and the events that wait to be sent to them."""

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
        """Empties `pending`; returns the watchers, and the encoded response with those events."""
        pending, self.pending = self.pending, []
        return list(self.watchers), leases_pb2.LeaseWatchResponse(header=header, events=pending).SerializeToString()
