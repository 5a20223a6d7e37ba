# SPDX-License-Identifier: Apache-2.0
"""Each row of the tenure's table, and the one law that it is for: never two that are valid at one time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.cluster.tenure import CLAIMING, FOLLOWER, PRIMARY, RATES_MAX, RELEASING, Tenure, Timing

TIMES = Timing()
BEFORE = 0.001


def follower(silent_since_s: float = 100.0) -> Tenure:
    tenure = Tenure(TIMES)
    tenure.answered(silent_since_s)
    return tenure


def primary(since_s: float = 100.0) -> Tenure:
    tenure = follower()
    tenure.claiming()
    tenure.landed(since_s, since_s + 0.1)
    return tenure


def keep_link(tenure: Tenure, from_s: float, to_s: float) -> None:
    while from_s < to_s:
        tenure.answered(from_s)
        from_s += 0.2
    tenure.answered(to_s)


def claims_at(tenure: Tenure, from_s: float) -> float:
    """The first instant, on a grid, at which it may claim while the engine answers."""
    now_s = from_s
    while not tenure.may_claim(now_s):
        now_s += 0.01
        tenure.answered(now_s)
    return now_s


def test_times_without_a_margin_are_refused() -> None:
    with pytest.raises(ValueError, match="claim_s"):
        Tenure(Timing(lease_s=1.0, claim_s=1.2))
    Tenure(Timing(lease_s=0.4, claim_s=0.5, beat_s=0.1))


def test_a_node_that_has_heard_nothing_claims_nothing() -> None:
    assert not Tenure(TIMES).may_claim(1e9)


def test_silence_counts_from_the_first_answer() -> None:
    assert claims_at(follower(100.0), 100.0) == pytest.approx(101.25, abs=0.02)


def test_silence_counts_from_each_record() -> None:
    tenure = follower(100.0)
    keep_link(tenure, 100.0, 101.0)
    tenure.saw(101.0)
    assert claims_at(tenure, 101.0) == pytest.approx(102.25, abs=0.02)


def test_a_rank_makes_a_candidate_wait_longer() -> None:
    tenure = Tenure(TIMES._replace(rank_s=0.2))
    tenure.answered(100.0)
    assert claims_at(tenure, 100.0) == pytest.approx(101.45, abs=0.02)


def test_after_an_outage_of_the_engine_silence_counts_anew() -> None:
    tenure = follower(100.0)
    keep_link(tenure, 100.0, 101.0)
    tenure.unanswered()
    assert not tenure.may_claim(110.0)
    tenure.answered(110.0)
    assert claims_at(tenure, 110.0) == pytest.approx(111.25, abs=0.02)


def test_a_node_that_stood_still_does_not_take_its_own_silence_for_the_primarys() -> None:
    tenure = follower(100.0)
    assert not tenure.may_claim(110.0)
    tenure.answered(110.0)
    assert claims_at(tenure, 110.0) == pytest.approx(111.25, abs=0.02)


def test_a_record_that_another_node_shows_is_no_link_to_the_engine() -> None:
    tenure = follower(100.0)
    tenure.unanswered()
    tenure.saw(101.0)
    assert not tenure.may_claim(105.0)


def test_a_release_that_names_this_node_lets_it_claim_at_once() -> None:
    tenure = follower(100.0)
    tenure.saw_release(100.1, True)
    assert tenure.may_claim(100.1)
    tenure.saw(100.2)
    assert not tenure.may_claim(100.2)


def test_a_release_that_names_another_counts_as_a_record() -> None:
    tenure = follower(100.0)
    tenure.saw_release(100.1, False)
    assert claims_at(tenure, 100.1) == pytest.approx(101.35, abs=0.02)


def test_a_claim_that_landed_is_valid_from_before_it_was_sent() -> None:
    tenure = follower(100.0)
    tenure.claiming()
    assert (tenure.state, tenure.valid(100.0), tenure.may_claim(200.0)) == (CLAIMING, False, False)
    tenure.landed(101.3, 101.9)
    assert tenure.state == PRIMARY
    assert tenure.valid(102.3 - BEFORE)
    assert not tenure.valid(102.3)


def test_a_claim_that_was_taken() -> None:
    tenure = follower(100.0)
    tenure.claiming()
    tenure.taken(101.4)
    assert tenure.state == FOLLOWER
    assert claims_at(tenure, 101.4) == pytest.approx(102.65, abs=0.02)


def test_a_record_that_landed_makes_a_lapsed_tenure_valid_again() -> None:
    tenure = primary(100.0)
    assert not tenure.valid(103.0)
    tenure.landed(102.9, 103.0)
    assert tenure.valid(103.9 - BEFORE)


def test_a_record_that_took_too_long_does_not() -> None:
    tenure = primary(100.0)
    tenure.landed(101.0, 105.0)
    assert not tenure.valid(105.0)


def test_an_older_record_never_shortens_a_tenure() -> None:
    tenure = primary(100.0)
    tenure.landed(99.0, 100.2)
    assert tenure.valid(101.0 - BEFORE)


def test_a_primary_whose_record_was_taken_is_fenced() -> None:
    tenure = primary(100.0)
    tenure.taken(100.3)
    assert (tenure.state, tenure.valid(100.3)) == (FOLLOWER, False)


def test_a_clock_that_stood_still_is_believed_after_a_record_that_was_sent_later() -> None:
    tenure = primary(100.0)
    tenure.distrust(100.4)
    assert not tenure.valid(100.4)
    tenure.landed(100.3, 100.5)  # sent before
    assert not tenure.valid(100.5)
    tenure.landed(100.5, 100.6)
    assert tenure.valid(100.6)


def test_a_record_that_was_sent_at_the_instant_of_the_doubt_does_not_count() -> None:
    tenure = primary(100.0)
    tenure.distrust(100.5)  # its clock may have stood still at this reading, after the record was sent
    tenure.landed(100.5, 100.75)
    assert not tenure.valid(100.75)


def test_a_claim_that_was_sent_before_the_clock_stood_still_lets_nothing_leave() -> None:
    tenure = follower(100.0)
    tenure.claiming()
    tenure.distrust(101.5)
    tenure.landed(101.25, 101.75)
    assert (tenure.state, tenure.valid(101.75), tenure.served_s(103.0)) == (PRIMARY, False, 101.75)
    tenure.landed(103.0, 103.25)
    assert (tenure.valid(103.25), tenure.served_s(103.5), tenure.lapsed_s) == (True, 102.0, 1.5)


def test_the_served_clock_counts_each_lapse_when_a_record_ends_it() -> None:
    tenure = primary(100.0)
    began_s = tenure.served_s(100.25)
    for quarters in range(401, 440):
        tenure.landed(quarters / 4, quarters / 4 + 0.125)
    assert (tenure.served_s(110.25) - began_s, tenure.lapsed_s) == (10.0, 0.0)
    assert tenure.served_s(130.0) - began_s == 10.5  # the last record was sent at 109.75
    tenure.landed(129.5, 130.0)
    assert (tenure.served_s(130.25) - began_s, tenure.lapsed_s) == (10.75, 19.25)


def test_each_tenure_has_lapses_of_its_own() -> None:
    tenure = primary(100.0)
    tenure.landed(110.0, 110.0)
    assert tenure.lapsed_s == 9.0
    tenure.taken(110.5)
    assert tenure.served_s(111.0) == tenure.served_s(110.5)
    tenure.claiming()
    tenure.landed(120.0, 120.5)
    assert (tenure.lapsed_s, tenure.served_s(120.75) - tenure.served_s(120.5)) == (0.0, 0.25)


def test_nothing_leaves_once_a_release_is_sent() -> None:
    tenure = primary(100.0)
    tenure.releasing()
    assert (tenure.state, tenure.valid(100.1)) == (RELEASING, False)
    tenure.landed(100.1, 100.2)
    assert (tenure.state, tenure.valid(100.2)) == (FOLLOWER, False)


def test_a_release_that_was_taken() -> None:
    tenure = primary(100.0)
    tenure.releasing()
    tenure.taken(100.2)
    assert tenure.state == FOLLOWER


def test_a_beat_is_due_after_a_while_without_a_record() -> None:
    tenure = primary(100.0)
    assert not tenure.beat_due(100.2, 100.2)
    assert tenure.beat_due(100.3, 100.3)
    assert not tenure.beat_due(101.5, 100.4)  # the loop stands still
    assert not follower().beat_due(200.0, 200.0)


@given(
    st.floats(1.0, RATES_MAX), st.floats(0.0, 5.0), st.floats(0.0, 0.5),
    st.lists(st.floats(0.0, 0.7), min_size=1, max_size=10),
)  # fmt: skip
def test_a_candidate_claims_after_the_last_answer(
    ahead: float, seen_s: float, sent_s: float, pauses: list[float]
) -> None:
    """The primary's clock runs at rate 1 and the candidate's at `ahead`, from other beginnings."""
    old = primary(sent_s)
    tenure = Tenure(TIMES)
    seen_s += sent_s  # it sees the last record when that was sent, or later
    tenure.answered(seen_s * ahead)
    tenure.saw(seen_s * ahead)
    now_s = seen_s
    for pause_s in pauses:
        now_s += pause_s
        if tenure.may_claim(now_s * ahead):
            assert not old.valid(now_s)
            return
        tenure.answered(now_s * ahead)
