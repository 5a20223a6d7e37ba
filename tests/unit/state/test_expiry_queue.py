# SPDX-License-Identifier: Apache-2.0
"""The expiry queue: never late, in the order of true deadlines, and bounded."""

from hypothesis import given
from hypothesis import strategies as st

from lessor.state.expiry_queue import ExpiryQueue
from lessor.state.lease import Lease


def lease(lease_id: int, deadline_s: float) -> Lease:
    return Lease(lease_id, 10, deadline_s, deadline_s, 1)


def ids(leases: list[Lease]) -> list[int]:
    return [lease.id for lease in leases]


def test_empty() -> None:
    queue = ExpiryQueue()
    assert queue.next_deadline() is None
    assert queue.take_due(1e9, 10) == []


def test_due_at_the_deadline_and_not_before() -> None:
    queue = ExpiryQueue()
    queue.add(lease(1, 10.0))
    assert queue.take_due(9.999, 10) == []
    assert ids(queue.take_due(10.0, 10)) == [1]
    assert queue.next_deadline() is None


def test_in_the_order_of_deadlines_and_of_arrival_where_equal() -> None:
    queue = ExpiryQueue()
    for lease_id, deadline_s in ((1, 30.0), (2, 10.0), (3, 20.0), (4, 10.0)):
        queue.add(lease(lease_id, deadline_s))
    assert ids(queue.take_due(25.0, 10)) == [2, 4, 3]
    assert queue.next_deadline() == 30.0


@given(st.lists(st.integers(1, 9), max_size=30), st.lists(st.integers(1, 9), max_size=5))
def test_many_at_once_are_in_the_same_order_and_come_before_later_ones_where_equal(
    at_once: list[int], later: list[int]
) -> None:
    queue = ExpiryQueue()
    leases = [lease(number, deadline_s) for number, deadline_s in enumerate(at_once + later)]
    queue.load(leases[: len(at_once)])
    for each in leases[len(at_once) :]:
        queue.add(each)
    assert queue.take_due(9.0, 100) == sorted(leases, key=lambda each: each.deadline_s)


def test_a_renewed_lease_goes_back() -> None:
    queue = ExpiryQueue()
    renewed = lease(1, 10.0)
    queue.add(renewed)
    renewed.deadline_s = 19.0
    deadline = queue.next_deadline()
    assert deadline is not None
    assert deadline <= 19.0
    assert queue.take_due(10.0, 10) == []
    assert queue.next_deadline() == 19.0
    assert len(queue) == 1
    assert ids(queue.take_due(19.0, 10)) == [1]


def test_true_deadlines_decide_when_several_have_passed() -> None:
    queue = ExpiryQueue()
    first = lease(1, 10.0)
    queue.add(first)
    queue.add(lease(2, 12.0))
    first.deadline_s = 15.0  # renewed, and then everybody slept until 20
    assert ids(queue.take_due(20.0, 10)) == [2, 1]


def test_no_more_than_asked_for_and_the_rest_next_time() -> None:
    queue = ExpiryQueue()
    for lease_id in range(5):
        queue.add(lease(lease_id, 10.0))
    assert ids(queue.take_due(10.0, 3)) == [0, 1, 2]
    assert queue.next_deadline() == 10.0
    assert ids(queue.take_due(10.0, 3)) == [3, 4]


def test_putting_back_is_capped_and_the_caller_has_to_come_back() -> None:
    queue = ExpiryQueue()
    leases = [lease(lease_id, 10.0) for lease_id in range(100)]
    for each in leases:
        queue.add(each)
        each.deadline_s = 20.0
    assert queue.take_due(10.0, 2) == []
    assert queue.next_deadline() == 10.0  # some are not looked at yet
    calls = 1
    while queue.next_deadline() == 10.0:
        assert queue.take_due(10.0, 2) == []
        calls += 1
    assert 1 < calls < 100
    assert queue.next_deadline() == 20.0
    assert len(queue) == 100


def test_an_ended_lease_is_never_due() -> None:
    queue = ExpiryQueue()
    gone = lease(1, 10.0)
    queue.add(gone)
    queue.add(lease(2, 11.0))
    gone.ended = True
    queue.ended()
    assert queue.next_deadline() == 11.0
    assert ids(queue.take_due(11.0, 10)) == [2]


def test_the_same_id_again_is_another_lease() -> None:
    queue = ExpiryQueue()
    first = lease(1, 10.0)
    queue.add(first)
    first.ended = True
    queue.ended()
    queue.add(lease(1, 10.0))
    due = queue.take_due(10.0, 10)
    assert ids(due) == [1]
    assert due[0] is not first
    assert len(queue) == 0


def test_ended_leases_do_not_pile_up() -> None:
    queue = ExpiryQueue()
    queue.add(lease(0, 1e6))
    for lease_id in range(1, 20_001):
        short_lived = lease(lease_id, 2e6)  # later than the one that lives, so never at the top
        queue.add(short_lived)
        short_lived.ended = True
        queue.ended()
    assert len(queue) < 5_000
    assert ids(queue.take_due(3e6, 10)) == [0]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.booleans()), max_size=40),
    st.integers(1, 5),
)
def test_like_sorting(plan: list[tuple[int, int, bool]], leases_max: int) -> None:
    """Whatever was renewed or ended: all live leases come out, by true deadline, none before it."""
    queue = ExpiryQueue()
    live = []
    for number, (deadline_s, later_s, ends) in enumerate(plan):
        each = lease(number, float(deadline_s))
        queue.add(each)
        each.deadline_s += later_s
        if ends:
            each.ended = True
            queue.ended()
        else:
            live.append(each)
    taken: list[Lease] = []
    for now in range(42):
        while (when := queue.next_deadline()) is not None and when <= now:
            due = queue.take_due(float(now), leases_max)
            assert len(due) <= leases_max
            assert all(now - 1 < each.deadline_s <= now for each in due)
            taken += due
    assert sorted(ids(taken)) == ids(live)
    assert [each.deadline_s for each in taken] == sorted(each.deadline_s for each in live)
