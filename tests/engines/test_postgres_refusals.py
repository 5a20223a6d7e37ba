# SPDX-License-Identifier: Apache-2.0
"""Which PostgreSQL a shared log refuses, whom PostgreSQL refuses, and what is said then."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lessor.durable.log import LogError
from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import Found, LogRefusedError, UnreachableError
from tests.certificates import Authority
from tests.engines.kit import PAGE_BYTES, ZEROS, all_records, filled, record
from tests.engines.postgres_server import PostgresServer
from tests.engines.tls_front import TlsFront

pytest.importorskip("psycopg", reason="the package psycopg is not here")

from lessor.engines.log_postgres import PostgresLog
from tests.engines.postgres_kit import STANDBY, Under, one_waits, standby_missing

pytestmark = pytest.mark.slow


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
    assert all_records(other) == made
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
        assert all_records(log) == [data]
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
    assert all_records(other) == [record("first", ZEROS)]


@pytest.mark.parametrize(
    ("setting", "text"),
    [("fsync", "fsync is off, so a power cut loses the log"), ("full_page_writes", "full_page_writes is off")],
)
def test_what_is_written_to_disk_is_looked_at_in_each_statement(
    postgres: PostgresServer, make: Callable[..., PostgresLog], setting: str, text: str
) -> None:
    """A reload of the settings reaches sessions that last."""
    log, first = make(), record("first", ZEROS)
    log.open(1)
    postgres.configure(**{setting: "off"})
    try:
        with pytest.raises(LogRefusedError, match=text):
            log.append(0, ZEROS, first)
        with pytest.raises(LogRefusedError, match=text):
            log.read(0, 1)
    finally:
        postgres.configure(**{setting: None})
    assert all_records(log) == []
    log.append(0, ZEROS, first)
    assert all_records(log) == [first]


def test_commits_that_somebody_sets_to_wait_for_nothing_wait_on(
    postgres: PostgresServer, make: Callable[..., PostgresLog]
) -> None:
    """A reload of the settings reaches sessions that last; ours was looked at before."""
    log = make()
    log.open(1)
    with standby_missing(postgres):
        postgres.configure(synchronous_commit="off")
        try:
            under = Under(log, 0, ZEROS, record("first", ZEROS))
            one_waits(postgres, STANDBY)
        finally:
            postgres.configure(synchronous_commit=None)
    assert under.end() is None


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


def test_tables_that_somebody_dropped_are_missed(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str
) -> None:
    log = make()
    log.open(1)
    made = filled(log, 2)
    chain = made[-1][-CHAIN_BYTES:]
    postgres.sql(f"DROP SCHEMA {schema} CASCADE")
    for call in (lambda: log.read(0, 1), lambda: log.append(2, chain, record("third", chain))):
        with pytest.raises(LogRefusedError, match=r"the tables of the log are gone .*: restore the database"):
            call()


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_record_that_somebody_deleted_is_damage_and_no_gap(
    postgres: PostgresServer, make: Callable[..., PostgresLog], schema: str, gone: int
) -> None:
    log = make()
    log.open(1)
    filled(log, 4)
    postgres.sql(f"DELETE FROM {schema}.log WHERE position = {gone}")
    with pytest.raises(LogRefusedError, match=f"damaged: record {gone} of 4 is not there"):
        log.read(0, PAGE_BYTES)


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
    assert all_records(logs[1]) == made


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
