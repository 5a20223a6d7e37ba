# SPDX-License-Identifier: Apache-2.0
"""What the loop of a primary is told: R4, R5, and the clock that counts the time in which it may answer."""

from hypothesis import given
from hypothesis import strategies as st

from lessor.cluster.answering import Answering

LEASE_S = 1.0


class World:
    """A tenure and two clocks, moved by hand."""

    def __init__(self) -> None:
        self.now, self.wall = 100.0, 5000.0
        self.until_s = self.now + LEASE_S
        self.answering = Answering(self, LEASE_S, lambda: self.now, lambda: self.wall)

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    def landed(self, sent_s: float) -> None:
        self.until_s = max(self.until_s, sent_s + LEASE_S)


def test_bytes_leave_until_the_tenure_ends_and_not_at_its_end() -> None:
    world = World()
    world.pass_s(0.999)
    assert world.answering.may_send()
    world.pass_s(0.001)
    assert not world.answering.may_send()
    assert not world.answering.may_send()
    assert world.answering.lapses == 1
    world.landed(world.now)
    assert world.answering.may_send()
    world.pass_s(2)
    assert not world.answering.may_send()
    assert world.answering.lapses == 2


def test_a_clock_that_has_stood_still_counts_for_nothing() -> None:
    world = World()
    world.wall += 30  # the machine was paused, and its clock with it
    assert not world.answering.may_send()
    sent_before_s = world.now
    world.pass_s(0.1)
    world.wall += 30
    assert not world.answering.may_send()
    world.landed(sent_before_s)
    assert not world.answering.may_send()
    world.pass_s(0.1)
    world.landed(world.now)
    assert world.answering.may_send()


def test_the_served_clock_stands_still_in_a_lapse() -> None:
    world = World()
    world.pass_s(0.5)
    assert world.answering.served_s() == 0.5
    world.pass_s(10)
    assert world.answering.served_s() == LEASE_S
    world.landed(world.now)
    assert world.answering.served_s() == LEASE_S
    assert world.answering.stood_s == 9.5
    world.pass_s(0.25)
    assert world.answering.served_s() == LEASE_S + 0.25
    world.pass_s(5)
    world.landed(world.now - 4)  # sent in time for nothing
    assert world.answering.served_s() == 2 * LEASE_S


def test_the_served_clock_stands_still_while_the_clock_is_not_believed() -> None:
    world = World()
    world.pass_s(0.25)
    world.wall += 30
    assert not world.answering.may_send()
    assert world.answering.served_s() == 0.25
    world.pass_s(0.5)  # within what was valid until then
    assert world.answering.served_s() == 0.25
    world.landed(world.now)
    assert world.answering.may_send()
    assert world.answering.served_s() == 0.25
    assert world.answering.stood_s == 0.5
    world.pass_s(0.25)
    assert world.answering.served_s() == 0.5


@given(
    st.lists(
        st.tuples(st.sampled_from(["pass", "land", "late", "jump", "ask", "read"]), st.floats(0.0, 3.0)), max_size=60
    )
)
def test_the_served_clock_counts_no_more_than_the_time_that_was_valid(steps: list[tuple[str, float]]) -> None:
    """And it never runs backwards, whatever lands when, and however the wall clock jumps."""
    world = World()
    last_s = valid_s = 0.0
    for step, amount in steps:
        if step == "pass":
            valid_s += max(min(world.until_s - world.now, amount), 0.0)
            world.pass_s(amount)
        elif step in ("land", "late"):
            world.landed(world.now if step == "land" else world.now - amount)
        elif step == "jump":
            world.wall += amount
        elif step == "ask":
            may = world.answering.may_send()
            assert not (may and world.now >= world.until_s)
        else:
            served_s = world.answering.served_s()
            assert last_s <= served_s <= valid_s + 1e-9
            last_s = served_s
