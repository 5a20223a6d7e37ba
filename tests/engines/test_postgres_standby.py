# SPDX-License-Identifier: Apache-2.0
"""A shared log in PostgreSQL with a standby: the standby dies, the primary dies, the standby takes its place.

Synchronous: nothing is lost. Asynchronous: what is lost is noticed, and never written over in silence.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import (
    LANDED,
    LOST,
    Found,
    LogRefusedError,
    Placing,
    TakenError,
    UnknownError,
    UnreachableError,
)
from tests.engines.kit import PAGE_BYTES, Writer, all_records, filled, left_open, placed, record
from tests.engines.postgres_server import NoServerError, PostgresServer

pytest.importorskip("psycopg", reason="the package psycopg is not here")

from lessor.engines.log_postgres import PostgresLog

pytestmark = pytest.mark.slow

SYNCHRONOUS = "ANY 1 (*)"


@contextmanager
def pair(names: str) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary with these synchronous standbys, and its standby, which streams."""
    started: list[PostgresServer] = []
    try:
        started.append(PostgresServer())
        started.append(PostgresServer(of=started[0]))
        streams(started[0])
        started[0].configure(synchronous_standby_names=names)
        yield started[0], started[1]
    except NoServerError as error:
        pytest.skip(str(error))
    finally:
        for server in reversed(started):
            server.close()


def streams(primary: PostgresServer) -> None:
    primary.wait("EXISTS (SELECT 1 FROM pg_stat_replication WHERE state = 'streaming')")


def promote(standby: PostgresServer) -> None:
    standby.sql("SELECT pg_promote()")
    standby.wait("NOT pg_is_in_recovery()")


def both(primary: PostgresServer, standby: PostgresServer) -> str:
    """A URL with both hosts: the one that takes writes is used."""
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    return f"postgres://postgres@{hosts}/postgres?schema=log"


def test_a_dead_standby_holds_appends_up_and_loses_none() -> None:
    with pair(SYNCHRONOUS) as (primary, standby):
        primary.wait("EXISTS (SELECT 1 FROM pg_stat_replication WHERE sync_state = 'quorum')")
        log = PostgresLog(primary.url("log"), answer_s=1.0)
        assert log.open(1).warnings == ()
        with pytest.raises(LogRefusedError, match="the server is a standby: name the primary, or all hosts"):
            PostgresLog(standby.url("log")).open(1)
        made = filled(log, 5)
        chain = made[-1][-CHAIN_BYTES:]
        standby.stop(signal.SIGQUIT)
        placing = Placing(5, chain, record("sixth", chain))
        left_open(log, placing)
        with pytest.raises(UnreachableError):
            log.read(0, PAGE_BYTES)
        standby.start()
        assert placed(log, placing) == LANDED
        assert all_records(log) == [*made, placing.data]
        assert standby.sql("SELECT max(position) FROM log.log") == [(6,)]
        log.close()


def test_a_synchronous_promotion_keeps_all_and_the_replaced_server_is_left() -> None:
    with pair(SYNCHRONOUS) as (primary, standby):
        log = PostgresLog(both(primary, standby), answer_s=5.0, may_lose_commits=True)
        log.open(1)
        made = filled(log, 20)
        chain = made[-1][-CHAIN_BYTES:]
        primary.stop(signal.SIGKILL)
        placing = Placing(20, chain, record("next", chain))
        left_open(log, placing)
        with pytest.raises(UnreachableError):  # the standby is there, and takes no writes
            log.read(0, PAGE_BYTES)
        standby.sql("ALTER SYSTEM RESET synchronous_standby_names")
        promote(standby)
        assert placed(log, placing) == LANDED
        assert all_records(log) == [*made, placing.data]
        # The old primary comes back, alone, takes writes as before, and stands first in the URL.
        primary.start()
        primary.configure(synchronous_standby_names="")
        old = PostgresLog(primary.url("log"), answer_s=5.0, may_lose_commits=True)
        old.open(1)
        assert all_records(old) == made  # who has not met the new one cannot know
        old.close()
        log._at = 0
        standby.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lessor'")
        with pytest.raises(UnreachableError, match="terminating"):
            log.read(0, PAGE_BYTES)
        assert all_records(log) == [*made, placing.data]  # not of the one that stands first
        standby.stop(signal.SIGQUIT)
        with pytest.raises(UnreachableError):
            log.read(0, PAGE_BYTES)
        with pytest.raises(UnreachableError, match="timeline 1, and timeline 2 was seen: it has been replaced"):
            log.read(0, PAGE_BYTES)
        with pytest.raises(UnknownError, match="it has been replaced"):
            log.append(20, chain, record("forked", chain))
        log.close()


def test_an_asynchronous_promotion_that_loses_records_is_noticed() -> None:
    with pair("") as (primary, standby):
        log, other = (PostgresLog(both(standby, primary), may_lose_commits=True, answer_s=5.0) for _ in range(2))
        log.open(1)
        other.open(2)
        writer, another = Writer(log), Writer(other, seed=2)
        for _ in range(10):
            another.landed(writer.append())
        primary.wait("(SELECT bool_and(flush_lsn >= pg_current_wal_flush_lsn()) FROM pg_stat_replication)")
        standby.stop(signal.SIGQUIT)
        for _ in range(4):
            writer.append()  # acknowledged, and on the primary alone
        primary.stop(signal.SIGKILL)
        standby.start()
        promote(standby)
        with pytest.raises(UnreachableError):
            other.read(0, PAGE_BYTES)  # its connection is lost
        assert other.read(0, PAGE_BYTES) == Found(another.records, 10)
        ours = Placing(writer.position, writer.chain, writer.next())
        with pytest.raises(UnknownError):
            log.append(ours.expect, ours.chain, ours.data)
        # The tail is behind what this node knows.
        assert writer.place(ours.data).next == LOST
        # Another node, which knew less, fills the positions again: the chain value tells.
        for _ in range(6):
            another.append()
        with pytest.raises(TakenError):
            log.append(ours.expect, ours.chain, ours.data)
        assert writer.place(ours.data).next == LOST
        log.close()
        other.close()
