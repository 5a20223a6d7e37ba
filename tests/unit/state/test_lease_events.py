# SPDX-License-Identifier: Apache-2.0
"""What watchers of leases are sent: grants and ends while somebody watches, nothing otherwise, no renewals."""

from typing import Any

from lessor.api.proto import leases_pb2, rpc_pb2
from lessor.state.machine import StateMachine
from tests.unit.state.test_machine import call, grant, new_machine, put

GRANTED, EXPIRED, REVOKED = 0, 1, 2
WATCHER = object()


def watched() -> StateMachine:
    machine = new_machine()
    machine.lease_events.watchers.add(WATCHER)
    return machine


def taken(machine: StateMachine) -> list[tuple[int, int, int, int, int]]:
    """Takes the pending events: (type, id, TTL, keys, revision) of each event."""
    watchers, response = machine.lease_events.take(machine.header())
    assert watchers == list(machine.lease_events.watchers)
    read: Any = leases_pb2.LeaseWatchResponse.FromString(response)
    assert read.header == machine.header()
    return [(event.type, event.ID, event.TTL, event.key_count, event.revision) for event in read.events]


def test_grants_and_ends_are_sent_in_their_order() -> None:
    machine = watched()
    grant(machine, 1, 10)
    grant(machine, 2, 5)
    put(machine, b"b", lease=1)
    put(machine, b"a", lease=1)
    put(machine, b"c", lease=2)
    revision = machine.revision
    call(machine, rpc_pb2.LeaseRevokeRequest(ID=1))
    assert machine.expire(5.0, 10) == 1
    grant(machine, 0, 3, now=5.0)
    (chosen,) = (lease.id for lease in machine.leases)
    assert taken(machine) == [
        (GRANTED, 1, 10, 0, 0),
        (GRANTED, 2, 5, 0, 0),
        (REVOKED, 1, 10, 2, revision + 1),
        (EXPIRED, 2, 5, 1, revision + 2),
        (GRANTED, chosen, 3, 0, 0),
    ]
    assert taken(machine) == []


def test_an_end_without_keys_has_no_revision() -> None:
    machine = watched()
    put(machine, b"k")
    grant(machine, 1)
    grant(machine, 2)
    call(machine, rpc_pb2.LeaseRevokeRequest(ID=1))
    machine.expire(10.0, 10)
    assert taken(machine)[2:] == [(REVOKED, 1, 10, 0, 0), (EXPIRED, 2, 10, 0, 0)]


def test_renewals_and_refusals_are_not_sent() -> None:
    machine = watched()
    grant(machine, 1)
    taken(machine)
    call(machine, rpc_pb2.LeaseKeepAliveRequest(ID=1), 5.0)
    assert machine.expire(10.0, 10) == 0
    assert taken(machine) == []


def test_nothing_is_kept_while_nobody_watches() -> None:
    machine = new_machine()
    grant(machine, 1)
    grant(machine, 2)
    call(machine, rpc_pb2.LeaseRevokeRequest(ID=1))
    machine.expire(10.0, 10)
    assert machine.lease_events.pending == []
