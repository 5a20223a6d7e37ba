# SPDX-License-Identifier: Apache-2.0
"""A shared log in PostgreSQL while its server's processes are killed and stopped, and its standby does not answer."""

import os
import signal
from collections.abc import Callable

import pytest

from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import LANDED, Found, Placing, TakenError, UnknownError, UnreachableError
from tests.engines.kit import PAGE_BYTES, ZEROS, all_records, filled, left_open, placed, record
from tests.engines.postgres_server import PostgresServer

psycopg = pytest.importorskip("psycopg", reason="the package psycopg is not here")

from lessor.engines.log_postgres import PostgresLog  # noqa: E402
from tests.engines.postgres_kit import (  # noqa: E402
    LOCK,
    STANDBY,
    Under,
    answer,
    held,
    impatient,
    one_waits,
    standby_missing,
)

pytestmark = pytest.mark.slow


# --- under way when it happens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pg_terminate_backend", "kill -9"])
def test_an_append_whose_process_ends_is_unknown_and_settled(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str, how: str
) -> None:
    log = make()
    log.open(1)
    made = filled(log, 1)
    chain = made[0][-CHAIN_BYTES:]
    placing = Placing(1, chain, record("second", chain))
    placing.trying(0.0)
    with held(postgres, schema):
        under = Under(log, 1, chain, placing.data)
        backend = one_waits(postgres, LOCK)
        if how == "kill -9":
            os.kill(backend, signal.SIGKILL)  # the server ends all sessions then, and recovers as after a crash
        else:
            postgres.sql(f"SELECT pg_terminate_backend({backend})")
        assert isinstance(under.end(), UnknownError)
    placing.unknown()
    assert placed(log, placing) == LANDED
    assert all_records(log) == [*made, placing.data]


def test_an_append_that_lands_while_its_answer_is_lost_is_found(
    postgres: PostgresServer, make: Callable[..., PostgresLog]
) -> None:
    """It gave up on a process that stood still; that one, or the second try, adds it."""
    log = make()
    log.open(1)
    impatient(log)
    data = record("first", ZEROS)
    placing = Placing(0, ZEROS, data)
    stopped = postgres.backends()[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        left_open(log, placing)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert placed(log, placing) == LANDED
    postgres.wait(f"NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = {stopped})")
    assert answer(lambda: log.read(0, PAGE_BYTES)) == Found([data], 1)


def test_a_process_that_was_stopped_adds_nothing_when_it_goes_on(
    postgres: PostgresServer, make: Callable[..., PostgresLog]
) -> None:
    log = make()
    log.open(1)
    impatient(log)
    stopped = postgres.backends()[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        with pytest.raises(UnknownError):
            log.append(0, ZEROS, record("late", ZEROS))
        assert answer(lambda: log.read(0, PAGE_BYTES)) == Found([], 0)
        mine = record("mine", ZEROS)
        assert placed(log, Placing(0, ZEROS, mine)) == LANDED
    finally:
        os.kill(stopped, signal.SIGCONT)
    postgres.wait(f"NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = {stopped})")
    assert answer(lambda: log.read(0, PAGE_BYTES)) == Found([mine], 1)


def test_of_two_that_wait_for_one_lock_the_second_is_refused(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str
) -> None:
    first, second = make(), make()
    first.open(1)
    second.open(1)
    with held(postgres, schema):
        ones = Under(first, 0, ZEROS, record("first", ZEROS))
        one_waits(postgres, LOCK)
        others = Under(second, 0, ZEROS, record("second", ZEROS))
        postgres.wait("(SELECT count(*) FROM pg_stat_activity WHERE " + LOCK + ") = 2")
    ended = [ones.end(), others.end()]
    assert sorted(type(error).__name__ for error in ended) == ["NoneType", "TakenError"]
    assert all_records(first) == [record("first" if ended[0] is None else "second", ZEROS)]


def test_a_node_that_stands_still_while_it_reads_holds_nobody_up(
    postgres: PostgresServer, make: Callable[..., PostgresLog]
) -> None:
    """Its server process waits until somebody takes the records, for as long as the node is stopped."""
    log, other = make(answer_s=5.0), make(answer_s=5.0)
    log.open(1)
    made = filled(log, 2, size_bytes=16_000_000)
    other.open(1)
    session = other._connected()
    assert len(session.ask("READ", _int8(0), _int8(1)).rows) == 1  # it is prepared now
    session._raw.send_query_prepared(b"READ", [_int8(0), _int8(2**40)], [1, 1], 1)
    assert session._raw.flush() == 0
    one_waits(postgres, "wait_event = 'ClientWrite'")
    assert log.read(2, PAGE_BYTES) == Found([], 2)
    chain = made[1][-CHAIN_BYTES:]
    log.append(2, chain, record("third", chain))
    log.trim(2)
    assert postgres.backends("wait_event = 'ClientWrite'") == [session.backend]


def _int8(value: int) -> bytes:
    return value.to_bytes(8, "big")


# --- a standby that does not answer ---------------------------------------------------------------------------------


def test_without_its_standby_a_server_takes_and_shows_nothing_and_loses_nothing(
    postgres: PostgresServer, make: Callable[..., PostgresLog]
) -> None:
    log = make()
    log.open(1)
    made = filled(log, 2)
    impatient(log)
    chain = made[1][-CHAIN_BYTES:]
    placing = Placing(2, chain, record("third", chain))
    with standby_missing(postgres):
        left_open(log, placing)
        with pytest.raises(UnreachableError):
            log.read(0, PAGE_BYTES)
    assert placed(log, placing) == LANDED
    assert answer(lambda: log.read(0, PAGE_BYTES)) == Found([*made, placing.data], 3)


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_wait_that_is_broken_off_is_no_success_and_not_shown(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str, how: str
) -> None:
    """PostgreSQL calls the cancelled append done, and shows its record, though no standby has it."""
    log, other = make(), make()
    log.open(1)
    other.open(1)
    impatient(other)
    data = record("first", ZEROS)
    placing = Placing(0, ZEROS, data)
    placing.trying(0.0)
    with standby_missing(postgres):
        under = Under(log, 0, ZEROS, data)
        postgres.sql(f"SELECT {how}({one_waits(postgres, STANDBY)})")
        assert isinstance(under.end(), UnknownError)
        assert postgres.sql(f"SELECT max(position) FROM {schema}.log") == [(1,)]  # it is there to see, for others
        with pytest.raises(UnreachableError):
            other.read(0, PAGE_BYTES)
        placing.unknown()
    assert placed(log, placing) == LANDED
    assert answer(lambda: other.read(0, PAGE_BYTES)) == Found([data], 1)


def test_tries_do_not_fill_a_server_without_its_standby(
    postgres: PostgresServer, make: Callable[..., PostgresLog]
) -> None:
    log = make()
    log.open(1)
    impatient(log)
    data = record("first", ZEROS)
    with standby_missing(postgres):
        for _ in range(4):
            with pytest.raises(UnknownError):
                log.append(0, ZEROS, data)
            with pytest.raises(UnreachableError):
                log.read(0, PAGE_BYTES)
        log.close()
        # One append and one read; those that waited for the row locks have ended.
        postgres.wait("(SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lessor') <= 2")
        assert len(postgres.backends(STANDBY)) <= 2
    again = make()
    assert placed(again, Placing(0, ZEROS, data)) == LANDED
    assert all_records(again) == [data]


# --- a server that goes away ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_log_goes_on_when_its_server_has_come_back(
    postgres: PostgresServer, make: Callable[..., PostgresLog], how: signal.Signals
) -> None:
    log, late = make(), make()
    log.open(1)
    made = filled(log, 3)
    chain = made[2][-CHAIN_BYTES:]
    placing = Placing(3, chain, record("fourth", chain))
    postgres.stop(how)
    try:
        left_open(log, placing)
        with pytest.raises(UnreachableError):
            log.read(0, PAGE_BYTES)
        with pytest.raises(UnreachableError, match="refused"):
            late.open(2)
    finally:
        postgres.start()
    assert late.open(2).cluster_id == 1
    assert placed(log, placing) == LANDED
    assert all_records(late) == [*made, placing.data]


# --- old positions and old rows -------------------------------------------------------------------------------------


def test_a_position_that_is_trimmed_meanwhile_is_not_given_again(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str
) -> None:
    """An append behind an old record waits for the trim that forgets that record and the one behind it."""
    log, stale = make(), make()
    log.open(1)
    stale.open(1)
    made = filled(log, 4)
    chain = made[0][-CHAIN_BYTES:]
    place = f"host=127.0.0.1 port={postgres.port} user=postgres"
    with psycopg.connect(place) as trimming:
        trimming.execute(f"UPDATE {schema}.head SET first = 4".encode())
        trimming.execute(f"DELETE FROM {schema}.log WHERE position < 4".encode())
        under = Under(stale, 1, chain, record("again", chain))
        one_waits(postgres, LOCK)
        trimming.commit()
    assert isinstance(under.end(), TakenError)
    assert all_records(log, after=3) == made[3:]
    assert postgres.sql(f"SELECT position FROM {schema}.log") == [(4,)]


@pytest.mark.parametrize(("count", "size_bytes"), [(1_200, 30), (20, 1_048_576)])
def test_what_is_trimmed_is_deleted(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str, count: int, size_bytes: int
) -> None:
    """In several steps, as records or as bytes."""
    log = make()
    log.open(1)
    filled(log, count, size_bytes)
    log.trim(count - 1)
    assert postgres.sql(f"SELECT position FROM {schema}.log ORDER BY 1") == [(count - 1,), (count,)]


def test_old_snapshots_are_deleted(postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str) -> None:
    """But for the one before the newest, which somebody may be reading."""
    log = make()
    log.open(1)
    for position in range(1, 5):
        log.put_snapshot(position, iter([bytes(20_000_000 if position == 2 else 2_000_000)]))
    assert postgres.sql(f"SELECT position FROM {schema}.snapshot ORDER BY 1") == [(3,), (4,)]
    assert postgres.sql(f"SELECT count(*)::int FROM {schema}.piece") == [(4,)]


def test_appends_leave_no_old_versions_of_rows_behind(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str
) -> None:
    """While a transaction is long, such as a backup, they could not be taken away."""
    log = make()
    log.open(1)
    made = filled(log, 300)
    for after in range(100):
        log.read(after, 1)
    chain = made[-1][-CHAIN_BYTES:]
    with pytest.raises(TakenError):
        log.append(5, chain, record("wrong", chain))
    log.close()
    tables = f"relid IN (SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace('{schema}'))"
    postgres.wait(f"(SELECT sum(n_tup_ins) FROM pg_stat_all_tables WHERE {tables}) >= 302")
    counts = f"SELECT sum(n_tup_upd)::int, sum(n_tup_del)::int FROM pg_stat_all_tables WHERE {tables}"
    assert postgres.sql(counts) == [(0, 0)]
