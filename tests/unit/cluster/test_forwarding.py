# SPDX-License-Identifier: Apache-2.0
"""Forwarded requests: each takes effect once, whatever is lost, repeated or late."""

from lessor.cluster.forwarding import FORWARD_ALLOWANCE_S, FORWARD_PASS_ON_S, RESEND_S, Forwarded, Forwards
from lessor.cluster.tenure import RATES_MAX
from lessor.durable.record import CHAIN_BYTES, Changes
from lessor.durable.shared_record import BATCH, NONCE_BYTES, Entry, Origin, encode

MINE, ANOTHERS = b"m" * NONCE_BYTES, b"a" * NONCE_BYTES


def landed(*origins: Origin) -> Entry:
    return encode(BATCH, 5, 1, bytes(CHAIN_BYTES), 1, ANOTHERS, Changes(4, 0.0), origins=origins)


def test_a_request_is_sent_once_and_again_when_no_answer_comes() -> None:
    forwards = Forwards(MINE)
    held = forwards.hold("put")
    assert forwards.due(1, 10.0) == [held]
    assert forwards.due(1, 10.1) == []
    assert forwards.due(1, 10.0 + RESEND_S) == [held]


def test_it_is_sent_anew_for_each_epoch() -> None:
    forwards = Forwards(MINE)
    held = forwards.hold("put")
    forwards.due(1, 10.0)
    assert forwards.due(2, 10.0) == [held]
    assert held.epoch == 2


def test_the_log_says_that_it_has_taken_effect() -> None:
    forwards = Forwards(MINE)
    first, second = forwards.hold("put"), forwards.hold("put")
    found = forwards.applied(landed(Origin(ANOTHERS, 1, b"no"), Origin(MINE, 1, b"reply"), Origin(MINE, 9, b"gone")))
    assert found == [(first, b"reply")]
    assert forwards.take_all() == [second]
    assert len(forwards) == 0


def test_a_refusal_of_an_older_epoch_does_not_count() -> None:
    forwards = Forwards(MINE)
    held = forwards.hold("txn")
    forwards.due(1, 10.0)
    forwards.due(2, 10.0)
    assert forwards.refused(1, held.counter) is None
    assert forwards.refused(2, held.counter) is held
    assert forwards.refused(2, held.counter) is None


def test_the_counter_below_which_nobody_waits() -> None:
    forwards = Forwards(MINE)
    held = [forwards.hold(n) for n in range(3)]
    forwards.give_up(held[0].counter)
    assert forwards.finished_below == held[1].counter
    forwards.take_all()
    assert forwards.finished_below == held[2].counter + 1


def test_a_primary_takes_a_forward_once_and_in_its_epoch() -> None:
    forwarded = Forwarded(3)
    assert not forwarded.take(2, MINE, 1, 1)
    assert forwarded.take(3, MINE, 1, 1)
    assert not forwarded.take(3, MINE, 1, 1)
    assert forwarded.take(3, ANOTHERS, 1, 1)
    assert forwarded.take(3, MINE, 3, 1)
    assert forwarded.take(3, MINE, 2, 1)  # they overtake each other


def test_a_refusal_is_kept_until_its_client_has_it() -> None:
    forwarded = Forwarded(3)
    forwarded.take(3, MINE, 1, 1)
    forwarded.refuse(MINE, 1, "no such lease")
    assert forwarded.refusal(MINE, 1) == "no such lease"
    assert forwarded.take(3, MINE, 2, 2)
    assert forwarded.refusal(MINE, 1) is None
    assert not forwarded.take(3, MINE, 1, 1)  # an old repetition of the first


def test_an_old_acknowledgement_is_not_passed_on() -> None:
    forwards = Forwards(MINE)
    assert forwards.may_pass(10.0, 10.0 + FORWARD_PASS_ON_S / 2)
    assert not forwards.may_pass(10.0, 10.0 + FORWARD_PASS_ON_S * 1.01)


def test_nor_one_that_was_asked_for_before_the_clock_stood_still() -> None:
    forwards = Forwards(MINE)
    forwards.distrust(10.05)
    assert not forwards.may_pass(10.0, 10.06)
    assert forwards.may_pass(10.05, 10.06)


def test_the_age_of_an_answer_counts_from_the_first_forward_of_an_epoch() -> None:
    forwards = Forwards(MINE)
    held = forwards.hold("grant")
    forwards.due(1, 10.0)
    forwards.due(1, 11.0)
    assert (held.since_s, held.sent_s) == (10.0, 11.0)
    forwards.due(2, 12.0)
    assert (held.since_s, held.sent_s) == (12.0, 12.0)


def test_an_acknowledgement_is_passed_on_within_its_allowance_by_any_clock() -> None:
    assert FORWARD_PASS_ON_S * RATES_MAX <= FORWARD_ALLOWANCE_S
