# SPDX-License-Identifier: Apache-2.0
"""The lessor: ids, limits, deadlines, and which rows they write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.base.errors import Code, EtcdError
from lessor.state.journal import Journal
from lessor.state.lease import Lease
from lessor.state.leases import RENEW_SLACK, Lessor

DAY_S = 86_400


def new_lessor(*, min_ttl_s: int = 1, id_seed: int = 100) -> tuple[Lessor, Journal]:
    journal = Journal()
    return Lessor(journal, min_ttl_s=min_ttl_s, id_seed=id_seed), journal


def test_grant_keeps_the_ttl_and_saves_the_exact_deadline() -> None:
    lessor, journal = new_lessor()
    lease = lessor.grant(7, 30, 1000.5)
    assert (lease.id, lease.ttl_s, lease.deadline_s, lease.batch) == (7, 30, 1030.5, 1)
    assert journal.seal(0.0).leases == [(7, 30, 1030.5, False)]
    assert lessor.get(7) is lease
    assert 7 in lessor
    assert len(lessor) == 1


@pytest.mark.parametrize("asked", [1, 0, -1, -(2**63)])
def test_a_short_ttl_is_raised_to_the_minimum(asked: int) -> None:
    lessor, _ = new_lessor(min_ttl_s=2)
    assert lessor.grant(1, asked, 0.0).ttl_s == 2


def test_the_longest_ttl() -> None:
    lessor, _ = new_lessor()
    assert lessor.grant(1, 9_000_000_000, 0.0).ttl_s == 9_000_000_000
    with pytest.raises(EtcdError) as caught:
        lessor.grant(2, 9_000_000_001, 0.0)
    assert (caught.value.code, caught.value.message) == (Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")


def test_an_id_that_lives_is_refused_even_past_its_deadline() -> None:
    lessor, _ = new_lessor()
    lessor.grant(1, 5, 0.0)
    with pytest.raises(EtcdError) as caught:
        lessor.grant(1, 5, 1000.0)
    assert caught.value.code == Code.FAILED_PRECONDITION
    assert caught.value.message == "etcdserver: lease already exists"


def test_too_long_is_said_before_already_exists() -> None:
    lessor, _ = new_lessor()
    lessor.grant(1, 5, 0.0)
    with pytest.raises(EtcdError) as caught:
        lessor.grant(1, 9_000_000_001, 0.0)
    assert caught.value.code == Code.OUT_OF_RANGE


def test_an_id_is_free_again_after_the_end() -> None:
    lessor, _ = new_lessor()
    lessor.grant(1, 5, 0.0)
    lessor.revoke(1)
    assert lessor.grant(1, 6, 0.0).ttl_s == 6


@pytest.mark.parametrize("lease_id", [-3, -(2**63), 2**63 - 1])
def test_any_id_but_zero_can_be_asked_for(lease_id: int) -> None:
    lessor, _ = new_lessor()
    assert lessor.grant(lease_id, 5, 0.0).id == lease_id


@pytest.mark.parametrize("seed", [0, 1, 5, 2**63 - 2, 2**63 + 3, -1])
def test_chosen_ids_are_positive_free_and_different(seed: int) -> None:
    lessor, _ = new_lessor(id_seed=seed)
    for taken in (6, 1, 2**63 - 1):
        lessor.grant(taken, 5, 0.0)
    chosen = [lessor.grant(0, 5, 0.0).id for _ in range(10)]
    assert len(set(chosen)) == 10
    assert all(0 < lease_id < 2**63 for lease_id in chosen)
    assert not {6, 1, 2**63 - 1} & set(chosen)


def test_a_refused_grant_uses_up_no_id() -> None:
    lessor, _ = new_lessor(id_seed=50)
    with pytest.raises(EtcdError):
        lessor.grant(0, 9_000_000_001, 0.0)
    assert lessor.grant(0, 5, 0.0).id == 50


def test_renewing_a_missing_lease() -> None:
    lessor, journal = new_lessor()
    assert lessor.renew(1, 0.0) is None
    assert journal.row_count == 0


def test_renewals_write_a_row_when_they_come_near_the_saved_deadline_and_wait_when_they_pass_it() -> None:
    lessor, journal = new_lessor()
    lessor.grant(1, 10, 0.0)
    journal.seal(0.0)
    rows = []
    for now in (3.0, 6.0, 9.0):
        lease = lessor.renew(1, now)
        assert lease is not None
        assert lease.deadline_s == now + 10
        rows.append((lease.batch, journal.seal(now).leases))
    # The later ones are within what the first one saved, so their replies wait for the first one's batch only.
    assert rows == [(2, [(1, 10, 21.0, False)]), (2, []), (2, [(1, 10, 27.0, False)])]


def test_a_renewal_in_the_batch_of_the_grant_waits_for_that() -> None:
    lessor, _ = new_lessor()
    lessor.grant(1, 10, 5.0)
    lease = lessor.renew(1, 5.0)
    assert lease is not None
    assert lease.batch == 1


def test_a_renewal_past_the_deadline_counts_while_the_lease_lives() -> None:
    lessor, _ = new_lessor()
    lessor.grant(1, 10, 0.0)
    assert lessor.renew(1, 99.0) is not None
    assert lessor.expire(100.0, 10) == []
    assert [lease.id for lease in lessor.expire(109.0, 10)] == [1]


@given(st.lists(st.floats(0.0, 30.0), max_size=50))
def test_the_saved_deadline_never_falls_short_of_a_renewal(pauses: list[float]) -> None:
    lessor, journal = new_lessor()
    lessor.grant(1, 10, 0.0)
    saved = journal.seal(0.0).leases[0][2]
    now = 0.0
    for pause in pauses:
        now += pause
        lessor.renew(1, now)
        rows = journal.seal(now).leases
        if rows:
            saved = rows[0][2]
        assert now + 10 <= saved <= now + 10 * (1 + RENEW_SLACK) + 1e-6


@given(st.lists(st.floats(0.0, 4.0), min_size=1, max_size=50))
def test_who_renews_at_a_third_of_the_ttl_or_a_little_later_waits_for_one_row_only(pauses: list[float]) -> None:
    lessor, journal = new_lessor()
    lessor.grant(1, 10, 0.0)
    journal.seal(0.0)
    now = 3.0
    first = lessor.renew(1, now)
    assert first is not None
    assert first.batch == journal.number
    assert journal.seal(now).leases_touched == [first]
    for pause in pauses:
        now += pause
        lease = lessor.renew(1, now)
        assert lease is not None
        assert lease.batch < journal.number
        # No client is answered for the row that may have been written, so the promise does not count from its commit.
        assert journal.seal(now).leases_touched == []


def test_acknowledging_counts_the_promise_from_now() -> None:
    lessor, journal = new_lessor()
    lease = lessor.grant(1, 10, 0.0)
    lessor.acknowledged(journal.seal(0.0).leases_touched, 2.0)
    assert lease.deadline_s == 12.0
    assert lessor.expire(11.9, 10) == []
    lessor.renew(1, 50.0)
    lessor.acknowledged([lease], 49.0)
    assert lease.deadline_s == 60.0  # never earlier


def test_renewed_without_a_row_is_not_touched() -> None:
    lessor, journal = new_lessor()
    lessor.grant(1, 10, 0.0)
    lessor.renew(1, 1.0)
    assert len(journal.seal(0.0).leases_touched) == 1
    lessor.renew(1, 2.0)
    assert journal.seal(0.0).leases_touched == []


def test_remaining_is_cut_towards_zero() -> None:
    lessor, _ = new_lessor()
    lease = lessor.grant(1, 10, 0.0)
    assert [lessor.remaining_s(lease, now) for now in (0.0, 0.1, 9.5, 10.0, 10.9, 11.0, 12.5)] == [
        10,
        9,
        0,
        0,
        0,
        -1,
        -2,
    ]


def test_listing_soonest_first() -> None:
    lessor, _ = new_lessor()
    for lease_id, ttl_s in ((1, 30), (2, 10), (3, 20)):
        lessor.grant(lease_id, ttl_s, 0.0)
    lessor.renew(2, 15.0)
    assert [lease.id for lease in lessor.by_deadline()] == [3, 2, 1]


def test_attach_and_detach() -> None:
    lessor, _ = new_lessor()
    first = lessor.grant(1, 10, 0.0)
    second = lessor.grant(2, 10, 0.0)
    lessor.attach(1, b"a")
    lessor.attach(1, b"b")
    assert first.keys == {b"a", b"b"}
    assert second.keys == set()
    lessor.detach(1, b"a")
    lessor.detach(1, b"never")
    lessor.detach(2, b"a")
    lessor.detach(77, b"a")
    assert first.keys == {b"b"}


def test_revoking_a_missing_lease() -> None:
    lessor, _ = new_lessor()
    with pytest.raises(EtcdError) as caught:
        lessor.revoke(0)
    assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "etcdserver: requested lease not found")


def test_the_end_writes_a_marked_row() -> None:
    lessor, journal = new_lessor()
    lessor.grant(1, 10, 0.0)
    lessor.grant(2, 20, 0.0)
    journal.seal(0.0)
    lessor.revoke(2)
    lessor.expire(10.0, 10)
    assert sorted(journal.seal(0.0).leases) == [(1, 10, 10.0, True), (2, 20, 20.0, True)]
    assert len(lessor) == 0
    assert lessor.next_deadline() is None
    assert lessor.renew(1, 10.0) is None


def test_checkpoint_saves_exact_deadlines_where_they_differ() -> None:
    lessor, journal = new_lessor()
    lessor.grant(1, 10, 0.0)
    lessor.grant(2, 10, 0.0)
    lessor.renew(2, 5.0)
    journal.seal(0.0)
    lessor.checkpoint()
    batch = journal.seal(0.0)
    assert batch.leases == [(2, 10, 15.0, False)]
    assert batch.leases_touched == []  # nobody is promised anything
    lessor.checkpoint()
    assert journal.row_count == 0


def test_renewing_for_a_day_keeps_one_entry() -> None:
    lessor, _ = new_lessor()
    lessor.grant(1, 60, 0.0)
    looked = 0
    for now in range(0, DAY_S, 20):
        lessor.renew(1, float(now))
        while (when := lessor.next_deadline()) is not None and when <= now:
            assert lessor.expire(float(now), 10) == []
            looked += 1
    assert looked <= DAY_S / 40 + 1  # once per TTL or so, not once per renewal


def test_a_promise_delayed_by_a_slow_commit_is_saved_again() -> None:
    """Else a crash after the next saved clock would end the lease before the promised deadline."""
    journal = Journal()
    lessor = Lessor(journal)
    lease = lessor.grant(7, 10, now_s=0.0)
    batch = journal.seal(0.0)
    lessor.acknowledged(batch.leases_touched, now_s=5.0)  # the disk took five seconds
    assert lease.deadline_s == 15.0
    assert journal.seal(5.0).leases == [(7, 10, 15.0, False)]


def test_a_promise_of_a_prompt_commit_needs_no_second_row() -> None:
    journal = Journal()
    lessor = Lessor(journal)
    lessor.grant(7, 10, now_s=0.0)
    lessor.acknowledged(journal.seal(0.0).leases_touched, now_s=0.02)
    assert journal.row_count == 0


def test_loaded_keys_are_hung_on_the_leases_that_live() -> None:
    lessor = Lessor(Journal())
    lessor.load([Lease(1, 10, 10.0, 10.0, 1), Lease(2, 10, 10.0, 10.0, 1), Lease(3, 10, 10.0, 10.0, 1)])
    lessor.attach_loaded([(1, b"a"), (2, b"b"), (1, b"c"), (9, b"d")])
    assert {lease.id: set(lease.keys) for lease in lessor} == {1: {b"a", b"c"}, 2: {b"b"}, 3: set()}
    lessor.attach(3, b"e")
    assert {lease.id: set(lease.keys) for lease in lessor} == {1: {b"a", b"c"}, 2: {b"b"}, 3: {b"e"}}
