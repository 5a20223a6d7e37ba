# SPDX-License-Identifier: Apache-2.0
"""What waits for the tables: whole records, the oldest first, clocks of an idle server as one."""

from typing import Any
from unittest import mock

from lessor.durable import unfolded as unfolded_module
from lessor.durable.record import Record
from lessor.durable.unfolded import Unfolded
from lessor.state.journal import AuthRows
from tests.unit.durable.engine_rows import batch, put


def record(number: int, size_bytes: int, **parts: Any) -> Record:
    return Record(number, 1, b"", b"%d" % number, batch(number, **parts), size_bytes)


def test_the_oldest_records_are_folded_whole_and_the_newest_row_of_a_lease_counts() -> None:
    unfolded = Unfolded()
    unfolded.add(record(1, 100, leases=[(7, 60, 1.0, False)], events=[put(2, b"a")]))
    unfolded.add(record(3, 50, leases=[(7, 60, 2.0, False), (8, 60, 2.0, False)], clock_s=3.5))
    unfolded.add(record(4, 50, leases=[(7, 60, 4.0, True)]))
    fold = unfolded.oldest(3, 1_000)
    assert (fold.newest.number, fold.newest.rows.clock_s) == (3, 3.5)
    assert fold.events == [(*put(2, b"a"), 1)]
    assert list(fold.leases.values()) == [(7, 60, 2.0, False, 3), (8, 60, 2.0, False, 3)]
    assert (len(unfolded), unfolded.size_bytes) == (3, 200)
    unfolded.remove(fold)
    assert (len(unfolded), unfolded.size_bytes) == (1, 50)
    assert unfolded.oldest(1_000, 1_000).newest.number == 4


def test_a_fold_ends_after_so_many_bytes_too() -> None:
    unfolded = Unfolded()
    for number in (1, 2, 3):
        unfolded.add(record(number, 100, events=[put(number, b"a")]))
    assert unfolded.oldest(1_000, 101).newest.number == 2
    assert unfolded.oldest(1_000, 1).newest.number == 1


def test_records_without_rows_are_kept_as_one_but_their_bytes_are_counted() -> None:
    unfolded = Unfolded()
    for number in range(1, 1_000):
        unfolded.add(record(number, 10, clock_s=number / 2))
    assert (len(unfolded), unfolded.size_bytes) == (1, 9_990)
    unfolded.add(record(1_000, 10, events=[put(2, b"a")]))
    unfolded.add(record(1_001, 10, clock_s=900.0))
    assert len(unfolded) == 3
    fold = unfolded.oldest(2, 1_000_000)
    assert (fold.newest.number, fold.newest.rows.clock_s, fold.count) == (1_001, 900.0, 3)
    unfolded.remove(fold)
    assert (len(unfolded), unfolded.size_bytes, unfolded.rows) == (0, 0, 0)


def test_what_is_not_a_key_or_a_lease_is_never_left_out() -> None:
    """Each of these stands alone in a record that is followed by one without rows."""
    parts: list[dict[str, Any]] = [
        {"alarms": [(5, 1, True)]},
        {"compact_revision": 3},
        {"peer_urls": ("http://a",)},
        {"auth": AuthRows([("u", b"", False, (), False)])},
        {"auth": AuthRows(switch=(True, 2))},
        {"dead": [(2, 0)]},
    ]
    unfolded = Unfolded()
    for number, part in enumerate(parts):
        unfolded.add(record(2 * number + 1, 10))
        unfolded.add(record(2 * number + 2, 10, **part))
    unfolded.add(record(99, 10))
    fold = unfolded.oldest(1_000, 1_000_000)
    assert fold.alarms == [((5, 1, True), 2)]
    assert dict(fold.meta) == {"compact_revision": 3, "peer_urls": "http://a"}
    assert (fold.compacted, fold.dead) == (4, [[(2, 0)]])
    assert [number for _, number in fold.auth] == [8, 10]
    unfolded.remove(fold)
    assert (len(unfolded), unfolded.size_bytes, unfolded.rows) == (0, 0, 0)


def test_dead_rows_are_sorted_in_pieces_and_those_of_a_key_stay_in_order() -> None:
    versions = [(revision, sub) for sub in (3, 1, 2) for revision in (5, 6)]  # of three keys: a version, its tombstone
    unfolded = Unfolded()
    unfolded.add(record(1, 10, dead=versions))
    with mock.patch.object(unfolded_module, "_SORTED_AT_ONCE", 4):
        fold = unfolded.oldest(1_000, 1_000_000)
    assert [len(piece) for piece in fold.dead] == [4, 2]
    assert all(piece == sorted(piece) for piece in fold.dead)
    named = [row for piece in fold.dead for row in piece]
    assert sorted(named) == sorted(versions)
    assert all(named.index((5, sub)) < named.index((6, sub)) for sub in (1, 2, 3))


def test_dead_rows_that_no_record_names_are_named_behind_the_newest_one() -> None:
    unfolded = Unfolded()
    assert not unfolded.name_dead([(1, 0)])
    unfolded.add(record(1, 10, compact_revision=9))
    assert unfolded.name_dead([(4, 0), (3, 0)])
    assert unfolded.name_dead([(2, 0)])
    unfolded.add(record(2, 10))
    assert unfolded.name_dead([(5, 0)])
    unfolded.add(record(3, 10))
    unfolded.add(record(4, 10, dead=[(6, 0)]))
    first = unfolded.oldest(1, 1_000)
    assert (first.newest.number, first.dead) == (1, [[(3, 0), (4, 0)], [(2, 0)]])
    unfolded.remove(first)
    second = unfolded.oldest(1_000, 1_000)
    assert (second.newest.number, second.dead) == (4, [[(5, 0)], [(6, 0)]])
    unfolded.remove(second)
    assert (len(unfolded), unfolded.size_bytes, unfolded.rows) == (0, 0, 0)
