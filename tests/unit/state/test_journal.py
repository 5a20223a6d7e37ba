# SPDX-License-Identifier: Apache-2.0
"""The journal: what a batch holds, and whose batch a reply has to wait for."""

from lessor.state.journal import EventRow, Journal
from lessor.state.lease import Lease


def row(revision: int, sub: int = 0) -> EventRow:
    return revision, sub, b"k", b"v", revision, 1, 0


def lease(lease_id: int) -> Lease:
    return Lease(lease_id, 10, 10.0, 10.0, 1)


def test_seal_hands_over_everything_and_opens_the_next() -> None:
    journal = Journal(7)
    journal.event(row(2))
    journal.event(row(2, 1))
    granted = lease(5)
    journal.lease((5, 10, 10.0, False), granted)
    journal.alarm((1, 1, True))
    journal.compact(2, [(1, 0)])
    assert journal.row_count == 5
    batch = journal.seal(3.5)
    assert (batch.number, batch.clock_s, batch.row_count) == (7, 3.5, 5)
    assert batch.events == [row(2), row(2, 1)]
    assert batch.leases == [(5, 10, 10.0, False)]
    assert batch.alarms == [(1, 1, True)]
    assert (batch.compact_revision, batch.dead) == (2, [(1, 0)])
    assert batch.leases_touched == [granted]
    assert not batch.clean
    assert (journal.number, journal.row_count) == (8, 0)
    following = journal.seal(4.0)
    assert (following.number, following.row_count, following.dead, following.compact_revision) == (8, 0, [], None)


def test_last_row_of_a_lease_wins() -> None:
    journal = Journal()
    journal.lease((5, 10, 10.0, False), lease(5))
    journal.lease((6, 10, 10.0, False), lease(6))
    journal.lease((5, 10, 13.5, False), lease(5))
    batch = journal.seal(0.0)
    assert sorted(batch.leases) == [(5, 10, 13.5, False), (6, 10, 10.0, False)]
    assert sorted(touched.id for touched in batch.leases_touched) == [5, 6]


def test_an_ended_lease_is_promised_nothing() -> None:
    journal = Journal()
    journal.lease((5, 10, 10.0, False), lease(5))
    journal.lease((5, 10, 10.0, True))
    batch = journal.seal(0.0)
    assert batch.leases == [(5, 10, 10.0, True)]
    assert batch.leases_touched == []


def test_a_lease_granted_again_in_the_batch_that_ended_it_lives() -> None:
    journal = Journal()
    journal.lease((5, 10, 10.0, True))
    again = lease(5)
    journal.lease((5, 20, 20.0, False), again)
    batch = journal.seal(0.0)
    assert batch.leases == [(5, 20, 20.0, False)]
    assert batch.leases_touched == [again]


def test_last_state_of_an_alarm_wins() -> None:
    journal = Journal()
    journal.alarm((1, 1, True))
    journal.alarm((2, 1, True))
    journal.alarm((1, 1, False))
    assert sorted(journal.seal(0.0).alarms) == [(1, 1, False), (2, 1, True)]


def test_newest_with_rows() -> None:
    journal = Journal(4)
    assert journal.newest_with_rows == 3  # what the disk holds
    journal.seal(0.0)
    assert journal.newest_with_rows == 3  # batch 4 was empty
    journal.event(row(2))
    assert journal.newest_with_rows == 5
    journal.seal(0.0)
    assert journal.newest_with_rows == 5
    journal.lease((5, 10, 10.0, True))
    assert journal.newest_with_rows == 6


def test_every_kind_of_row_counts() -> None:
    journal = Journal()
    for count, write in enumerate(
        (
            lambda: journal.event(row(2)),
            lambda: journal.lease((1, 1, 1.0, False)),
            lambda: journal.alarm((1, 1, True)),
            lambda: journal.compact(1, []),
            journal.mark_clean,
        ),
        start=1,
    ):
        write()
        assert journal.row_count == count
    assert journal.seal(0.0).row_count == 5


def test_rows_to_collect_alone_do_not_ask_for_a_commit() -> None:
    journal = Journal()
    journal.note_dead([(2, 0)])
    assert journal.row_count == 0
    assert journal.newest_with_rows == 0
    assert journal.seal(0.0).dead == [(2, 0)]


def test_dead_rows_that_were_taken_are_not_named() -> None:
    journal = Journal()
    journal.note_dead([(2, 0)])
    journal.note_dead([(1, 0)])
    assert journal.take_dead() == [(2, 0), (1, 0)]
    assert not journal.names_dead
    journal.note_dead([(3, 0)])
    assert journal.seal(0.0).dead == [(3, 0)]
