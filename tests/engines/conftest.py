# SPDX-License-Identifier: Apache-2.0
"""The engines that the tests share: started once, when the first test asks, skipped with the reason where none can."""

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.engines.postgres_server import NoServerError, PostgresServer
from tests.engines.subjects import MemorySubject, PostgresSubject, Subject

if TYPE_CHECKING:  # psycopg is not everywhere
    from lessor.engines.log_postgres import PostgresLog

PATIENT_S = 30.0


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server without a standby. Who changes its settings sets them back."""
    pytest.importorskip("psycopg", reason="the package psycopg is not here")
    try:
        server = PostgresServer()
    except NoServerError as error:
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(params=["memory", "postgres"])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "memory":
        return MemorySubject()
    return PostgresSubject(request.getfixturevalue("postgres"))


_numbers = itertools.count(1)


@pytest.fixture
def schema() -> str:
    """Of the test's own log in PostgreSQL."""
    return f"schema{next(_numbers)}"


@pytest.fixture
def make(postgres: PostgresServer, schema: str) -> "Iterator[Callable[..., PostgresLog]]":
    """Makes logs in that schema, or at an address, not yet opened."""
    from lessor.engines.log_postgres import PostgresLog

    made: list[PostgresLog] = []

    def make_log(url: str = "", **options: Any) -> PostgresLog:
        options = {"may_lose_commits": True, "answer_s": PATIENT_S, **options}
        made.append(PostgresLog(url or postgres.url(schema), **options))
        return made[-1]

    yield make_log
    for log in made:
        log.close()
