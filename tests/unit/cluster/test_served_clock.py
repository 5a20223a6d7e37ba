# SPDX-License-Identifier: Apache-2.0
"""The data clock of a primary: only the time counts in which it may answer."""

from hypothesis import given
from hypothesis import strategies as st

from lessor.cluster.served_clock import ServedClock


def test_it_goes_on_at_the_saved_reading() -> None:
    clock = ServedClock(500.0, 100.0, 101.0)
    assert clock.now_s(100.5) == 500.5


def test_it_stands_still_while_the_tenure_is_lapsed() -> None:
    clock = ServedClock(500.0, 100.0, 101.0)
    assert clock.now_s(103.0) == 501.0
    clock.extend(104.0, 104.5)
    assert clock.now_s(104.25) == 501.25
    assert clock.now_s(105.0) == 501.5


def test_a_record_that_landed_too_late_moves_nothing() -> None:
    clock = ServedClock(500.0, 100.0, 101.0)
    clock.extend(105.0, 102.0)
    assert clock.now_s(106.0) == 501.0


@given(st.floats(0.0, 3.0), st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(-3.0, 3.0)), max_size=20))
def test_it_never_runs_backwards(until_s: float, steps: list[tuple[float, float]]) -> None:
    now_s, served_s = 100.0, 0.0
    clock = ServedClock(500.0, now_s, now_s + until_s)
    before_s = clock.now_s(now_s)
    for pause_s, ahead_s in steps:
        now_s, served_s = now_s + pause_s, served_s + pause_s
        for _ in range(2):
            assert before_s - 1e-9 <= clock.now_s(now_s) <= 500.0 + served_s + 1e-9
            before_s = clock.now_s(now_s)
            clock.extend(now_s, now_s + ahead_s)
