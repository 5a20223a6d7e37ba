# SPDX-License-Identifier: Apache-2.0
"""What the loop of a primary is told: R4, R5, and the clock that counts the time in which it may answer."""

from hypothesis import given
from hypothesis import strategies as st

from lessor.cluster.answering import Answering
from lessor.cluster.tenure import Tenure, Timing

LEASE_S = 1.0
BEAT_S = 0.25


class World:
    """A tenure and two clocks, moved by hand."""

    def __init__(self) -> None:
        self.now, self.wall = 100.0, 5000.0
        self.tenure = Tenure(Timing(lease_s=LEASE_S, beat_s=BEAT_S))
        self.tenure.claiming()
        self.landed(self.now)
        self.answering = Answering(self.tenure, lambda: self.now, lambda: self.wall)

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    def landed(self, sent_s: float) -> None:
        self.tenure.landed(sent_s, self.now)

    def beat(self, seconds: float) -> None:
        """Beats land for so long, and nobody asks anything."""
        end_s = self.now + seconds
        while self.now < end_s:
            self.pass_s(BEAT_S)
            self.landed(self.now - BEAT_S / 2)


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


def test_nothing_leaves_once_a_release_is_sent() -> None:
    world = World()
    world.tenure.releasing()
    assert not world.answering.may_send()


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


def test_the_served_clock_of_an_idle_primary_counts_all_the_time_in_which_beats_kept_it_valid() -> None:
    world = World()
    world.beat(10)
    assert world.answering.served_s() == 10
    world.beat(3600)
    assert world.answering.served_s() == 3610
    assert world.answering.stood_s == 0


def test_a_lapse_of_an_idle_primary_is_one_though_nobody_asked_in_it() -> None:
    world = World()
    world.beat(10)
    world.pass_s(5)
    world.landed(world.now)
    world.beat(10)
    stood_s = 5 - (LEASE_S - BEAT_S / 2)
    assert world.answering.stood_s == stood_s
    assert world.answering.served_s() == 25 - stood_s
    assert world.answering.stood_s == stood_s


def test_what_stood_before_the_primary_began_to_lead_does_not_count() -> None:
    world = World()
    world.pass_s(5)
    world.landed(world.now)
    answering = Answering(world.tenure, lambda: world.now, lambda: world.wall)
    world.pass_s(0.5)
    assert (answering.served_s(), answering.stood_s) == (0.5, 0)


def test_the_served_clock_of_an_idle_primary_goes_on_after_its_clock_was_not_believed() -> None:
    world = World()
    world.beat(10)
    world.wall += 30
    assert not world.answering.may_send()
    world.pass_s(0.5)
    world.landed(world.now - 0.25)
    world.beat(10)
    assert world.answering.served_s() == 20  # nobody asked when the record landed
    assert world.answering.stood_s == 0.5


def test_a_clock_that_is_not_believed_twice_counts_nothing_in_between() -> None:
    world = World()
    world.pass_s(0.25)
    world.wall += 30
    assert not world.answering.may_send()
    world.pass_s(0.25)
    world.wall += 30
    assert not world.answering.may_send()
    assert world.answering.served_s() == 0.25
    world.pass_s(0.25)
    world.landed(world.now)
    world.beat(10)
    assert world.answering.served_s() == 10.25
    assert world.answering.stood_s == 0.5


def test_the_served_clock_stands_when_the_tenure_is_over() -> None:
    world = World()
    world.pass_s(0.25)
    assert world.answering.served_s() == 0.25
    world.tenure.taken(world.now)
    world.pass_s(0.25)
    assert world.answering.served_s() == 0.25
    assert not world.answering.may_send()


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
        st.tuples(st.sampled_from(["pass", "land", "late", "beat", "jump", "ask", "read"]), st.floats(0.0, 3.0)),
        max_size=60,
    )
)
def test_the_served_clock_counts_no_more_than_the_time_that_was_valid(steps: list[tuple[str, float]]) -> None:
    """And no less, and it never runs backwards, whatever lands when, whoever asks, and however the wall clock jumps."""
    world = World()
    last_s = valid_s = 0.0
    for step, amount in steps:
        if step == "pass":
            valid_s += max(min(world.tenure.until_s - world.now, amount), 0.0)
            world.pass_s(amount)
        elif step == "beat":
            for _ in range(8):
                valid_s += max(min(world.tenure.until_s - world.now, BEAT_S), 0.0)
                world.pass_s(BEAT_S)
                world.landed(world.now - BEAT_S / 2)
        elif step in ("land", "late"):
            world.landed(world.now if step == "land" else world.now - amount)
        elif step == "jump":
            world.wall += amount
        elif step == "ask":
            may = world.answering.may_send()
            assert not (may and world.now >= world.tenure.until_s)
        else:
            served_s = world.answering.served_s()
            assert last_s <= served_s
            assert abs(served_s - valid_s) < 1e-9
            last_s = served_s
