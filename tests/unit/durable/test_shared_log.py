# SPDX-License-Identifier: Apache-2.0
"""The way of one record into a shared log: no outcome is guessed, and no second record is made meanwhile."""

from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import LANDED, LOOK, LOST, TAKEN, TRY, Found, Placing

CHAIN = b"c" * CHAIN_BYTES
BEFORE = b"the record before" + CHAIN
OURS, ANOTHER = b"ours", b"another's"


def placing(expect: int = 7) -> Placing:
    made = Placing(expect, CHAIN if expect else bytes(CHAIN_BYTES), OURS)
    made.trying(10.0)
    return made


def looked(at: Placing, *behind: bytes, last: int, now_s: float = 11.0) -> Placing:
    at.looking(now_s)
    before = [BEFORE] if at.look_after < at.expect else []
    at.found(Found([*before, *behind], last))
    return at


def test_a_record_that_was_accepted_has_landed() -> None:
    at = placing()
    assert at.next == TRY
    at.accepted()
    assert (at.next, at.since_s) == (LANDED, 10.0)


def test_an_unknown_one_that_is_there_has_landed_since_the_first_try() -> None:
    at = placing()
    at.unknown()
    assert at.next == LOOK
    assert (looked(at, OURS, last=8).next, at.since_s) == (LANDED, 10.0)


def test_one_that_is_not_there_is_tried_again_and_counts_from_the_look() -> None:
    """It may have landed right after the look, before the second try was made."""
    at = placing()
    at.unknown()
    assert looked(at, last=7, now_s=11.0).next == TRY
    at.trying(11.5)
    at.unknown()
    assert (looked(at, OURS, last=8, now_s=12.0).next, at.since_s) == (LANDED, 11.0)


def test_a_refusal_is_no_outcome_either() -> None:
    """The first try had landed, and the second was refused because of it."""
    at = placing()
    at.unknown()
    looked(at, last=7)
    at.trying(11.5)
    at.refused()
    assert looked(at, OURS, ANOTHER, last=9).next == LANDED


def test_anothers_record_takes_the_position() -> None:
    at = placing()
    at.refused()
    assert looked(at, ANOTHER, OURS, last=9).next == TAKEN
    assert list(at.others) == [ANOTHER, OURS]


def test_a_look_that_brings_the_record_before_alone_is_followed_by_another() -> None:
    at = placing()
    at.unknown()
    assert at.look_after == 6
    assert looked(at, last=8).next == LOOK
    assert at.look_after == 7
    assert looked(at, OURS, last=8).next == LANDED


def test_a_log_that_ends_before_what_we_know_has_lost_records() -> None:
    at = placing()
    at.refused()
    at.looking(11.0)
    at.found(Found([], 6))
    assert at.next == LOST


def test_a_log_with_another_record_before_ours_has_lost_records() -> None:
    at = placing()
    at.refused()
    at.looking(11.0)
    at.found(Found([b"of another history" + b"d" * CHAIN_BYTES, OURS], 8))
    assert at.next == LOST


def test_the_first_record_of_all() -> None:
    at = placing(expect=0)
    at.unknown()
    assert at.look_after == 0
    assert looked(at, last=0).next == TRY
    at.unknown()
    assert looked(at, ANOTHER, last=1).next == TAKEN


def test_another_node_can_settle_it() -> None:
    for data, outcome in ((OURS, LANDED), (ANOTHER, TAKEN)):
        at = placing()
        at.unknown()
        at.known(data)
        assert at.next == outcome
