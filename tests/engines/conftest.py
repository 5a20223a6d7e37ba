# SPDX-License-Identifier: Apache-2.0
"""The engines that the tests share: started once, when the first test asks, skipped with the reason where none can."""

from collections.abc import Iterator

import pytest

from tests.engines.postgres_server import NoServerError, PostgresServer
from tests.engines.subjects import MemorySubject, PostgresSubject, Subject


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
