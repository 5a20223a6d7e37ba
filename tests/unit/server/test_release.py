# SPDX-License-Identifier: Apache-2.0
"""The release gate: nothing leaves before its batch is durable, is lost, or is reordered for one outlet."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lessor.base.errors import EtcdError
from lessor.server.loop import bugs
from lessor.server.loop.release import Gate


class Collector:
    """An outlet that remembers what it was given."""

    def __init__(self) -> None:
        self.payloads: list[Any] = []

    def deliver(self, payload: Any) -> None:
        self.payloads.append(payload)

    def end_now(self, error: EtcdError) -> None:
        self.payloads.append(error.message)


class Broken(Collector):
    """An outlet with a bug."""

    def deliver(self, payload: Any) -> None:
        raise RuntimeError("a bug")


class Hopeless(Broken):
    """An outlet that raises again when its bug is to end it."""

    def end_now(self, error: EtcdError) -> None:
        raise RuntimeError("another")


@pytest.mark.parametrize("batch", [7, 8], ids=["at once", "with its batch"])
def test_a_bug_of_one_outlet_is_told_to_that_one_and_the_others_get_theirs(batch: int) -> None:
    gate, outlets = Gate(durable=7), [Collector(), Broken(), Hopeless(), Collector()]
    for outlet in outlets:
        gate.hold(batch, outlet, "reply")
    gate.committed(8)
    assert [outlet.payloads for outlet in outlets] == [["reply"], [bugs.TEXT], [], ["reply"]]


def test_what_needs_no_batch_leaves_at_once() -> None:
    outlet = Collector()
    Gate(durable=7).hold(7, outlet, "reply")
    assert outlet.payloads == ["reply"]


def test_a_reply_waits_for_its_own_batch_and_leaves_with_it() -> None:
    gate, outlet = Gate(durable=7), Collector()
    gate.hold(9, outlet, "reply")
    gate.committed(8)
    assert outlet.payloads == []
    gate.committed(9)
    assert outlet.payloads == ["reply"]
    gate.committed(10)
    assert outlet.payloads == ["reply"]


def test_an_older_batch_may_be_waited_for_after_a_newer_one() -> None:
    gate, writer, keepalive = Gate(durable=0), Collector(), Collector()
    gate.hold(2, writer, "put")
    gate.hold(1, keepalive, "renewed")
    gate.committed(1)
    assert (writer.payloads, keepalive.payloads) in (([], ["renewed"]), ([], []))  # never the put
    gate.committed(2)
    assert (writer.payloads, keepalive.payloads) == (["put"], ["renewed"])


# Steps: hold for the batch that many above the durable one, on one of three outlets; or commit the next batch.
_STEPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)) | st.none(), max_size=60)


@given(_STEPS)
@example([(2, 0), (1, 1), None, (0, 1)])
def test_no_payload_leaves_early_is_lost_or_overtakes(steps: list[tuple[int, int] | None]) -> None:
    gate = Gate(durable=0)
    outlets = [Collector() for _ in range(3)]
    newest = [0, 0, 0]  # per outlet: the newest batch waited for, which is what callers may go on with
    held: list[list[tuple[int, int]]] = [[], [], []]
    for number, step in enumerate(steps):
        if step is None:
            gate.committed(gate.durable + 1)
        else:
            ahead, which = step
            newest[which] = max(newest[which], gate.durable + ahead)
            held[which].append((newest[which], number))
            gate.hold(newest[which], outlets[which], (newest[which], number))
        for outlet in outlets:
            assert all(batch <= gate.durable for batch, _ in outlet.payloads)
    gate.committed(gate.durable + 5)
    assert [outlet.payloads for outlet in outlets] == held
