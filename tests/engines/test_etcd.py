# SPDX-License-Identifier: Apache-2.0
"""What only concerns a log in an etcd: its pieces, and reads that take several calls. Also on a Lessor in its place."""

from contextlib import suppress

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import Client
from lessor.durable.shared_log import Found, SharedLog, TrimmedError
from lessor.engines.log_etcd import EtcdLog
from tests.engines.conftest import ETCDS
from tests.engines.kit import PAGE_BYTES, ZEROS, Writer
from tests.engines.subjects import Subject

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("subject", ETCDS, indirect=True)]


def keys_below(subject: Subject, folder: str) -> int:
    place = subject.place("one")
    assert place is not None
    address, _, prefix = place[1].removeprefix("etcd://").partition("/")
    with Client(address) as client:
        return client.get(f"/{prefix}/{folder}/", prefix=True, count_only=True).count


def test_a_lost_race_leaves_no_pieces(subject: Subject, writer: Writer, other: SharedLog) -> None:
    late = Writer(other, seed=2).next(3_000_000)
    writer.append(3_000_000)
    with suppress(Exception):
        other.append(0, ZEROS, late)
    assert keys_below(subject, "piece") == 3
    writer.append()
    writer.log.trim(2)
    assert keys_below(subject, "piece") == 0


def test_old_snapshots_are_deleted(subject: Subject, writer: Writer) -> None:
    """But for the one before the newest, which somebody may be reading."""
    for position in range(1, 5):
        writer.log.put_snapshot(position, iter([bytes(2_000_000)]))
    assert keys_below(subject, "snap") == 4


def test_long_logs_are_read_in_long_runs(writer: Writer) -> None:
    """Four records first, and then a power of two."""
    for _ in range(150):
        writer.append(30)
    assert writer.log.read(0, 10_000_000) == Found(writer.records[: 4 + 128], 150)
    assert writer.log.read(0, 1_000) == Found(writer.records[: 4 + 16], 150)


def test_a_read_is_of_one_instant_while_others_append(writer: Writer, other: SharedLog) -> None:
    """Also when it takes several calls of the etcd, between which records come."""
    assert isinstance(other, EtcdLog)
    look = other._link.look

    def look_and_append(*steps: rpc.RequestOp, **options: float) -> rpc.TxnResponse:
        reply = look(*steps, **options)
        for _ in range(3):
            writer.append()
        return reply

    for count in range(1, 12):
        begin = writer.position
        for _ in range(count):
            writer.append()
        other._link.look = look_and_append  # type: ignore[method-assign]
        found = other.read(begin, PAGE_BYTES)
        other._link.look = look  # type: ignore[method-assign]
        assert found.last == begin + count
        assert found.records == writer.records[begin : begin + len(found.records)]
        assert 0 < len(found.records) <= count


@pytest.mark.parametrize(("large", "expected"), [(1, None), (5, 4), (9, 4)])
def test_what_is_trimmed_during_a_read_is_left_out_or_refused(
    writer: Writer, other: SharedLog, large: int, expected: int | None
) -> None:
    """Record `large` is in pieces. `expected`: how many of the first records the read brings; None: none."""
    assert isinstance(other, EtcdLog)
    for position in range(1, 21):
        writer.append(3_000_000 if position == large else 200)
    look = other._link.look

    def look_and_trim(*steps: rpc.RequestOp, **options: float) -> rpc.TxnResponse:
        reply = look(*steps, **options)
        writer.log.trim(15)
        return reply

    other._link.look = look_and_trim  # type: ignore[method-assign]
    if expected is None:
        with pytest.raises(TrimmedError) as caught:
            other.read(0, 10_000_000)
        assert caught.value.first == 15
    else:
        assert other.read(0, 10_000_000) == Found(writer.records[:expected], 20)
