# SPDX-License-Identifier: Apache-2.0
"""A shared log in PostgreSQL, and all that goes wrong with a server: stopped, killed, cut off, set wrongly.

Where a test needs a statement that is under way, another session holds the lock that it waits for, or a standby is
named that is not there: so the moment is exact.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lessor.durable.log import LogError
from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import (
    LANDED,
    Found,
    LogRefusedError,
    Placing,
    SharedLog,
    TakenError,
    UnknownError,
    UnreachableError,
)
from tests.certificates import Authority
from tests.engines.kit import BYTES_MAX, ZEROS, all_of, filled, placed, record
from tests.engines.postgres_server import PostgresServer
from tests.engines.tls_front import TlsFront

psycopg = pytest.importorskip("psycopg", reason="the package psycopg is not here")

from lessor.engines.log_postgres import PostgresLog  # noqa: E402

NOBODY = "nobody_there"  # a standby that is named and never comes
SHORT_S = 0.4  # until a log gives up, where the test is about that
LONG_S = 30.0

pytestmark = pytest.mark.slow


_numbers = itertools.count(1)


@pytest.fixture
def schema() -> str:
    return f"schema{next(_numbers)}"


@pytest.fixture
def make(postgres: PostgresServer, schema: str) -> Iterator[Callable[..., PostgresLog]]:
    made: list[PostgresLog] = []

    def make_log(url: str = "", **options: Any) -> PostgresLog:
        made.append(
            PostgresLog(url or postgres.url(schema), **{"may_lose_commits": True, "answer_s": LONG_S, **options})
        )
        return made[-1]

    yield make_log
    for log in made:
        log.close()


def impatient(log: PostgresLog) -> None:
    """Gives up soon, from now on: what a test does before that may take its time."""
    log._answer_s = log._connected()._answer_s = SHORT_S


def answer(call: Callable[[], Found]) -> Found:
    """Of an impatient log on a machine that does much else."""
    for _ in range(50):
        with suppress(UnreachableError):
            return call()
    return call()


class Under:
    """An append in a thread."""

    def __init__(self, log: SharedLog, expect: int, chain: bytes, data: bytes) -> None:
        self.error: LogError | None = None
        self._thread = threading.Thread(target=self._append, args=(log, expect, chain, data))
        self._thread.start()

    def _append(self, log: SharedLog, expect: int, chain: bytes, data: bytes) -> None:
        try:
            log.append(expect, chain, data)
        except LogError as error:
            self.error = error

    def end(self) -> LogError | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.error


@contextmanager
def held(postgres: PostgresServer, schema: str) -> Iterator[None]:
    """Somebody else's next record is under way meanwhile, and comes to nothing in the end."""
    place = f"host=127.0.0.1 port={postgres.port} user=postgres"
    with psycopg.connect(place) as connection:
        connection.execute(f"INSERT INTO {schema}.log SELECT max(position) + 1, '', 0, '' FROM {schema}.log".encode())
        yield
        with suppress(psycopg.Error):  # the server may have gone
            connection.rollback()


@contextmanager
def standby_missing(postgres: PostgresServer) -> Iterator[None]:
    """Every commit waits for a standby that is not there."""
    postgres.configure(synchronous_standby_names=NOBODY)
    try:
        while not postgres.commits_wait():  # another process of the server brings the setting into effect
            pass
        yield
    finally:
        postgres.configure(synchronous_standby_names=None)


def one_waits(postgres: PostgresServer, event: str) -> int:
    postgres.wait(f"(SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lessor' AND {event}) = 1")
    return postgres.backends(event)[0]


LOCK = "wait_event_type = 'Lock'"
STANDBY = "wait_event = 'SyncRep'"


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
    assert all_of(log) == [*made, placing.data]


def test_an_append_that_lands_while_its_answer_is_lost_is_found(
    postgres: PostgresServer, make: Callable[..., PostgresLog]
) -> None:
    """It gave up on a process that stood still; that one, or the second try, adds it."""
    log = make()
    log.open(1)
    impatient(log)
    data = record("first", ZEROS)
    placing = Placing(0, ZEROS, data)
    placing.trying(0.0)
    stopped = postgres.backends()[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        with pytest.raises(UnknownError):
            log.append(0, ZEROS, data)
        placing.unknown()
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert placed(log, placing) == LANDED
    postgres.wait(f"NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = {stopped})")
    assert answer(lambda: log.read(0, BYTES_MAX)) == Found([data], 1)


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
        assert answer(lambda: log.read(0, BYTES_MAX)) == Found([], 0)
        mine = record("mine", ZEROS)
        assert placed(log, Placing(0, ZEROS, mine)) == LANDED
    finally:
        os.kill(stopped, signal.SIGCONT)
    postgres.wait(f"NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = {stopped})")
    assert answer(lambda: log.read(0, BYTES_MAX)) == Found([mine], 1)


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
    assert all_of(first) == [record("first" if ended[0] is None else "second", ZEROS)]


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
    assert log.read(2, BYTES_MAX) == Found([], 2)
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
    placing.trying(0.0)
    with standby_missing(postgres):
        with pytest.raises(UnknownError):
            log.append(2, chain, placing.data)
        placing.unknown()
        with pytest.raises(UnreachableError):
            log.read(0, BYTES_MAX)
    assert placed(log, placing) == LANDED
    assert answer(lambda: log.read(0, BYTES_MAX)) == Found([*made, placing.data], 3)


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
            other.read(0, BYTES_MAX)
        placing.unknown()
    assert placed(log, placing) == LANDED
    assert answer(lambda: other.read(0, BYTES_MAX)) == Found([data], 1)


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
                log.read(0, BYTES_MAX)
        log.close()
        # One append and one read; those that waited for the row locks have ended.
        postgres.wait("(SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lessor') <= 2")
        assert len(postgres.backends(STANDBY)) <= 2
    again = make()
    assert placed(again, Placing(0, ZEROS, data)) == LANDED
    assert all_of(again) == [data]


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
        placing.trying(0.0)
        with pytest.raises(UnknownError):
            log.append(3, chain, placing.data)
        placing.unknown()
        with pytest.raises(UnreachableError):
            log.read(0, BYTES_MAX)
        with pytest.raises(UnreachableError, match="refused"):
            late.open(2)
    finally:
        postgres.start()
    assert late.open(2).cluster_id == 1
    assert placed(log, placing) == LANDED
    assert all_of(late) == [*made, placing.data]


# --- who may ----------------------------------------------------------------------------------------------------------


SECRET = "s3cr3t-Wort"


@pytest.fixture
def user(postgres: PostgresServer) -> Iterator[str]:
    """A user with a password, who owns a database of the same name."""
    postgres.sql(f"CREATE ROLE keeper LOGIN PASSWORD '{SECRET}'", "CREATE DATABASE keeper OWNER keeper")
    yield "keeper"
    postgres.sql("DROP DATABASE keeper WITH (FORCE)", "DROP ROLE keeper")


def test_a_user_with_no_more_than_a_database_of_its_own(
    postgres: PostgresServer, make: Callable[..., PostgresLog], user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make(postgres.url("mine", user, SECRET, user))
    log.open(1)
    made = filled(log, 2)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    other = make(postgres.url("mine", user, "", user))
    other.open(1)
    assert all_of(other) == made
    assert SECRET not in repr(log) + repr(other)


def test_a_user_who_may_not_make_the_schema_is_told_who_may(
    postgres: PostgresServer, make: Callable[..., PostgresLog], user: str
) -> None:
    postgres.sql("REVOKE CREATE ON DATABASE keeper FROM keeper", "ALTER DATABASE keeper OWNER TO postgres")
    log = make(postgres.url("given", user, SECRET, user))
    with pytest.raises(LogRefusedError, match="CREATE SCHEMA given AUTHORIZATION"):
        log.open(1)
    postgres.sql("CREATE SCHEMA given AUTHORIZATION keeper", database="keeper")
    log.open(1)
    assert log.read(0, 1) == Found([], 0)


@pytest.mark.parametrize(
    ("who", "password", "database", "text"),
    [
        ("keeper", "wr0ng-Wort", "keeper", "password authentication failed"),
        ("keeper", "", "keeper", "no password supplied"),
        ("nobody_known", "wr0ng-Wort", "keeper", "password authentication failed"),
        ("keeper", SECRET, "none_such", "does not exist"),
    ],
)
def test_who_is_not_let_in_is_told_why_but_no_secret(
    postgres: PostgresServer,
    make: Callable[..., PostgresLog],
    user: str,
    who: str,
    password: str,
    database: str,
    text: str,
) -> None:
    log = make(postgres.url("mine", who, password, database))
    with pytest.raises(LogRefusedError, match=text) as raised:
        log.open(1)
    shown = str(raised.value)
    assert "\n" not in shown
    assert not password or password not in shown
    assert raised.value.__cause__ is None


def test_no_secret_is_in_any_error(
    postgres: PostgresServer,
    make: Callable[..., PostgresLog],
    user: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    url = postgres.url("mine", user, SECRET, user)
    errors: list[BaseException] = []

    def noted(call: Callable[[], object]) -> None:
        with pytest.raises(LogError) as raised:
            call()
        errors.append(raised.value)

    log = make(url)
    log.open(1)
    noted(lambda: log.append(5, ZEROS, record("wrong", ZEROS)))
    noted(lambda: make(url, may_lose_commits=False).open(1))
    noted(lambda: make(url + "&sslmode=require").open(1))
    noted(lambda: make(url + "&sslpassword=" + SECRET + "2&sslmode=none").open(1))
    noted(lambda: make(url.replace(str(postgres.port), "1")).open(1))
    noted(lambda: make(url.replace("127.0.0.1", "host.invalid")).open(1))
    postgres.sql("DROP TABLE mine.log", database="keeper")
    noted(lambda: log.read(0, 1))
    noted(lambda: log.append(0, ZEROS, record("first", ZEROS)))
    postgres.sql("DROP SCHEMA mine CASCADE", database="keeper")
    noted(lambda: log.newest_snapshot())
    shown = [str(error) + repr(error) + repr(error.__cause__) for error in errors]
    assert len(shown) == 9
    assert [text for text in shown if SECRET in text or "\n" in text] == []
    assert SECRET not in caplog.text


def test_tls_as_libpq_means_it(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str, tmp_path: Path
) -> None:
    ours, others = Authority("ours"), Authority("others")
    trusted, strange = ours.write(tmp_path / "ours.pem"), others.write(tmp_path / "others.pem")
    plain = postgres.url(schema)
    with pytest.raises(LogRefusedError, match="server does not support SSL"):
        make(f"{plain}&sslmode=verify-full&sslrootcert={trusted}").open(1)
    front = TlsFront(postgres.port, ours.issue(tmp_path, "server"))
    try:
        url = plain.replace(str(postgres.port), str(front.port))
        log = make(f"{url}&sslmode=verify-full&sslrootcert={trusted}")
        log.open(1)
        data = record("first", ZEROS, 3_000_000)
        log.append(0, ZEROS, data)
        assert all_of(log) == [data]
        assert front.secured == 1
        for untrusted in (
            f"{url}&sslmode=verify-full&sslrootcert={strange}",
            f"{url}&sslmode=verify-full&sslrootcert=/no",
        ):
            with pytest.raises(LogRefusedError, match="certificate"):
                make(untrusted).open(1)
        log.close()
    finally:
        front.close()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("fsync", "off", "set fsync = on"),
        ("full_page_writes", "off", "set full_page_writes = on"),
        ("synchronous_commit", "off", "SET synchronous_commit = on"),
        ("synchronous_commit", "local", "SET synchronous_commit = on"),
        ("synchronous_commit", "remote_write", "SET synchronous_commit = on"),
        ("default_transaction_read_only", "on", "set default_transaction_read_only = off"),
    ],
)
def test_a_server_that_may_lose_or_takes_nothing_is_refused_with_what_to_set(
    postgres: PostgresServer, make: Callable[..., PostgresLog], setting: str, value: str, text: str
) -> None:
    log = make()
    log.open(1)
    postgres.configure(**{setting: value})
    try:
        with pytest.raises(LogRefusedError, match=text) as raised:
            make().open(1)
        assert "\n" not in str(raised.value)
    finally:
        postgres.sql(
            "SET default_transaction_read_only = off", f"ALTER SYSTEM RESET {setting}", "SELECT pg_reload_conf()"
        )
        postgres.wait(f"current_setting('{setting}') <> '{value}'")
    make().open(1)


def test_without_a_synchronous_standby_only_who_says_so_is_served(
    postgres: PostgresServer, make: Callable[..., PostgresLog]
) -> None:
    with pytest.raises(LogRefusedError, match=r"synchronous_standby_names.*--engine-may-lose-commits"):
        make(may_lose_commits=False).open(1)
    info = make().open(1)
    assert [text for text in info.warnings if "synchronous_standby_names" in text]


def test_standbys_that_are_taken_out_of_the_settings_meanwhile_are_missed(
    postgres: PostgresServer, make: Callable[..., PostgresLog]
) -> None:
    """As some fail-over managers do when the only standby is away. The connection lasts; each statement looks."""
    log, other = make(may_lose_commits=False), make()
    other.open(1)
    with standby_missing(postgres):
        under = Under(log, 0, ZEROS, record("first", ZEROS))
        one_waits(postgres, STANDBY)
    assert under.end() is None
    chain = record("first", ZEROS)[-CHAIN_BYTES:]
    with pytest.raises(LogRefusedError, match="synchronous_standby_names is empty"):
        log.append(1, chain, record("second", chain))
    with pytest.raises(LogRefusedError, match="synchronous_standby_names is empty"):
        log.read(0, 1)
    assert all_of(other) == [record("first", ZEROS)]


def test_a_session_has_no_time_limit_but_its_own(postgres: PostgresServer, make: Callable[..., PostgresLog]) -> None:
    """A statement that is ended by one would leave a commit that is visible and not safe."""
    postgres.configure(statement_timeout="1s", idle_session_timeout="1s")
    try:
        log = make()
        log.open(1)
        found = log._connected().look(
            "SELECT name, setting FROM pg_settings WHERE name IN "
            "('statement_timeout', 'idle_session_timeout', 'search_path', 'default_transaction_isolation')"
        )
        assert {name.decode(): value.decode() for name, value in found} == {
            "statement_timeout": "0",
            "idle_session_timeout": "0",
            "search_path": "",
            "default_transaction_isolation": "read committed",
        }
    finally:
        postgres.configure(statement_timeout=None, idle_session_timeout=None)


# --- another log than ours --------------------------------------------------------------------------------------------


def test_a_log_of_another_format_is_refused(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str
) -> None:
    make().open(1)
    postgres.sql(f"UPDATE {schema}.head SET format = 9")
    with pytest.raises(LogRefusedError, match="format 9; this Lessor knows 1"):
        make().open(1)


def test_tables_that_a_crash_would_empty_are_refused(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str
) -> None:
    make().open(1)
    postgres.sql(f"ALTER TABLE {schema}.log SET UNLOGGED")
    with pytest.raises(LogRefusedError, match=r"log: ALTER TABLE \.\.\. SET LOGGED"):
        make().open(1)


def test_a_log_that_was_put_in_the_place_of_ours_is_refused(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str
) -> None:
    log = make()
    log.open(1)
    postgres.sql(f"UPDATE {schema}.head SET cluster_id = 2", f"SELECT pg_terminate_backend({postgres.backends()[0]})")
    with pytest.raises(UnreachableError):
        log.read(0, 1)  # notices the lost connection
    with pytest.raises(LogRefusedError, match="not the log of the cluster 1"):
        log.read(0, 1)


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_record_that_somebody_deleted_is_damage_and_no_gap(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str, gone: int
) -> None:
    log = make()
    log.open(1)
    filled(log, 4)
    postgres.sql(f"DELETE FROM {schema}.log WHERE position = {gone}")
    with pytest.raises(LogRefusedError, match=f"damaged: record {gone} of 4 is not there"):
        log.read(0, BYTES_MAX)


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
    assert all_of(log, after=3) == made[3:]
    assert postgres.sql(f"SELECT position FROM {schema}.log") == [(4,)]


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


def test_a_pooler_that_changes_the_process_is_noticed_and_adds_nothing(
    postgres: PostgresServer, make: Callable[..., PostgresLog]
) -> None:
    """The log finds itself served by another process than the one whose settings it has checked."""
    log, other = make(), make()
    log.open(1)
    other.open(1)
    log._session, other._session = other._session, log._session
    with pytest.raises(LogRefusedError, match="pool_mode = session"):
        log.append(0, ZEROS, record("first", ZEROS))
    with pytest.raises(LogRefusedError, match="pool_mode = session"):
        other.read(0, 1)
    assert log.read(0, 1) == Found([], 0)


@pytest.fixture
def pooled(postgres: PostgresServer) -> Iterator[Callable[[str], str]]:
    """A PgBouncer in some mode before the server; the host and port of it."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("no pgbouncer is installed here")
    poolers = []

    def start(mode: str) -> str:
        poolers.append(postgres.pooler(program, mode))
        return f"127.0.0.1:{poolers[-1][1]}"

    yield start
    for process, _ in poolers:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_pooler_that_gives_a_process_to_several_sessions_is_refused(
    make: Callable[..., PostgresLog], pooled: Callable[[str], str], schema: str, mode: str
) -> None:
    with pytest.raises(LogRefusedError, match="pool_mode = session"):
        make(f"postgres://postgres@{pooled(mode)}/postgres?schema={schema}").open(1)


def test_a_pooler_that_gives_each_session_a_process_is_used_and_named(
    make: Callable[..., PostgresLog], pooled: Callable[[str], str], schema: str
) -> None:
    url = f"postgres://postgres@{pooled('session')}/postgres?schema={schema}"
    logs = [make(url), make(url)]
    for log in logs:
        assert [line for line in log.open(1).warnings if "pooler" in line]
    made = filled(logs[0], 3)
    assert all_of(logs[1]) == made


# --- without the library ----------------------------------------------------------------------------------------------


def test_without_psycopg_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from lessor.durable.shared_log import LogRefusedError\n"
        "from lessor.engines.named import shared_log\n"
        "try: shared_log('postgres://h/d')\n"
        "except LogRefusedError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "the engine postgres:// needs psycopg: pip install 'lessor[postgres]'\n"
    assert done.stderr == ""


def test_a_conflicting_append_is_no_error_of_the_engine(make: Callable[..., PostgresLog]) -> None:
    log = make()
    log.open(1)
    filled(log, 1)
    with pytest.raises(TakenError):
        log.append(0, ZEROS, record("other", ZEROS))
    assert log.read(1, 1) == Found([], 1)
