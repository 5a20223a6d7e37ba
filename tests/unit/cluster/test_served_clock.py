# SPDX-License-Identifier: Apache-2.0
"""The data clock of a primary: only the time counts in which it may answer."""

from hypothesis import given
from hypothesis import strategies as st

from lessor.cluster.served_clock import NO_DOUBT, Doubt, ServedClock

LEASE_S = 1.0
BEGUN = ServedClock.begun(100.0).landed(99.5, LEASE_S, 100.0, NO_DOUBT)  # its tenure lapses at 100.5


def test_it_goes_on_while_records_land_in_time_and_is_asked_at_the_end() -> None:
    clock = BEGUN
    for quarters in range(400, 440):
        clock = clock.landed(quarters / 4, LEASE_S, quarters / 4 + 0.125, NO_DOUBT)
    assert clock.now_s(110.25, NO_DOUBT) - BEGUN.now_s(100.0, NO_DOUBT) == 10.25
    assert clock.lapsed_s == 0.0


def test_it_stands_still_while_the_tenure_is_lapsed() -> None:
    assert BEGUN.now_s(103.0, NO_DOUBT) == 100.5
    clock = BEGUN.landed(103.5, LEASE_S, 104.0, NO_DOUBT)
    assert clock.lapsed_s == 3.5
    assert clock.now_s(104.25, NO_DOUBT) == 100.75
    assert clock.now_s(105.0, NO_DOUBT) == 101.0


def test_a_lapse_counts_also_when_nobody_asks() -> None:
    clock = BEGUN
    for sent_s in (103.75, 104.0, 104.25):
        clock = clock.landed(sent_s, LEASE_S, sent_s + 0.25, NO_DOUBT)
    assert (clock.lapsed_s, clock.now_s(104.5, NO_DOUBT)) == (3.5, 101.0)


def test_a_record_that_landed_too_late_moves_nothing() -> None:
    clock = BEGUN.landed(101.0, LEASE_S, 105.0, NO_DOUBT)
    assert clock.now_s(106.0, NO_DOUBT) == 100.5
    clock = clock.landed(106.0, LEASE_S, 106.5, NO_DOUBT)
    assert (clock.now_s(106.5, NO_DOUBT), clock.lapsed_s) == (100.5, 6.0)


def test_a_record_older_than_the_newest_one_changes_nothing() -> None:
    assert BEGUN.landed(99.25, LEASE_S, 100.25, NO_DOUBT) == BEGUN


def test_it_stands_still_from_the_first_doubt_until_a_record_lands_that_was_sent_after_the_last() -> None:
    doubt = Doubt(100.25, 100.375)
    assert BEGUN.now_s(100.4375, doubt) == 100.25
    assert BEGUN.landed(100.375, LEASE_S, 100.5, doubt) == BEGUN
    clock = BEGUN.landed(100.5, LEASE_S, 102.25, doubt)
    assert (clock.lapsed_s, clock.now_s(102.25, doubt)) == (2.0, 100.25)


def test_a_doubt_that_comes_while_a_record_lands_takes_no_time_back() -> None:
    """Two threads. One is about to put off an older doubt, which the record has ended meanwhile."""
    doubt = Doubt(100.125, 100.125)
    clock = BEGUN.landed(100.25, LEASE_S, 100.5, doubt)
    before_s = clock.now_s(100.5, doubt)
    later = Doubt(doubt.stopped_s, 100.5)
    assert clock.now_s(100.75, later) == before_s
    clock = clock.landed(100.75, LEASE_S, 101.0, later)
    assert clock.now_s(101.0, later) == before_s


def test_it_stops_when_the_tenure_is_over() -> None:
    clock = BEGUN.ended(100.25)
    assert clock.now_s(100.5, NO_DOUBT) == 100.25
    assert BEGUN.ended(0.0).now_s(100.5, NO_DOUBT) == 100.0


@given(
    st.lists(
        st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.sampled_from(["lands", "lands", "doubt"])), max_size=30
    )
)
def test_it_never_runs_backwards_and_never_ahead(steps: list[tuple[float, float, str]]) -> None:
    now_s, clock, doubt = 100.0, BEGUN, NO_DOUBT
    begun_s = before_s = clock.now_s(now_s, doubt)
    for pause_s, ago_s, step in steps:
        now_s += pause_s
        if step == "doubt":
            doubt = Doubt(now_s if clock.believed(doubt) else doubt.stopped_s, now_s)
        for _ in range(2):
            reading_s = clock.now_s(now_s, doubt)
            assert before_s - 1e-9 <= reading_s <= begun_s + now_s - 100.0 + 1e-9
            before_s = reading_s
            if step == "lands":
                clock = clock.landed(now_s - ago_s, LEASE_S, now_s, doubt)
