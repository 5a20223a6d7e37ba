# SPDX-License-Identifier: Apache-2.0
"""What tests do to a PostgreSQL under a shared log, so that the moment is exact: another session holds what a statement
waits for, or a standby is named that is not there.

Laws: whoever is here waits for a condition, not for a time; settings are as before when a block ends.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from lessor.durable.log import LogError
from lessor.durable.shared_log import Found, SharedLog, UnreachableError
from lessor.engines.log_postgres import PostgresLog
from tests.engines.postgres_server import PostgresServer

NOBODY = "nobody_there"  # a standby that is named and never comes
SHORT_S = 0.4  # until a log gives up, where the test is about that
# In pg_stat_activity, of a process that waits:
LOCK = "wait_event_type = 'Lock'"
STANDBY = "wait_event = 'SyncRep'"


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
