# SPDX-License-Identifier: Apache-2.0
"""Fixtures for pytest: a server for a test, a client, a clock that can be jumped. docs/testing.md has examples.

    def test_the_lock_is_free_when_its_holder_is_gone(lessor_server, lessor_clock):
        ...  # any client of etcd at lessor_server.address
        lessor_clock.jump(60)

The plugin is installed with Lessor, and pytest finds it by its entry point. No part of the server is imported before a
test asks for a fixture.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lessor.client import AsyncClient, Client
    from lessor.testing.server import InProcessServer
    from lessor.testing.virtual_clock import VirtualClock


def _serving(*flags: str, **settings: Any) -> Iterator["InProcessServer"]:
    from lessor.testing.server import InProcessServer

    with InProcessServer(*flags, **settings) as server:
        yield server


@pytest.fixture
def lessor_server() -> Iterator["InProcessServer"]:
    """A server with an empty state, for this test alone. `.address` is host:port. Time moves by jumps only."""
    yield from _serving()


@pytest.fixture(scope="module")
def lessor_server_module() -> Iterator["InProcessServer"]:
    """One server for all tests of a module. Its state stays from test to test."""
    yield from _serving()


@pytest.fixture(scope="session")
def lessor_server_session() -> Iterator["InProcessServer"]:
    """One server for the whole run. Its state stays from test to test."""
    yield from _serving()


@pytest.fixture
def lessor_server_tls() -> Iterator["InProcessServer"]:
    """As `lessor_server`, but only with TLS. Clients verify it with `.ca_file`."""
    yield from _serving(tls=True)


@pytest.fixture
def lessor_server_auth() -> Iterator["InProcessServer"]:
    """As `lessor_server`, with auth on. The user root has the password "root", and all rights."""
    yield from _serving(root_password="root")


@pytest.fixture
def lessor_server_factory() -> Iterator[Callable[..., "InProcessServer"]]:
    """Starts more servers: `lessor_server_factory(*flags, tls=..., root_password=..., clock=...)`.

    They end with the test. `flags` are flags of `lessor serve`.
    """
    from lessor.testing.server import InProcessServer

    with ExitStack() as stack:
        yield lambda *flags, **settings: stack.enter_context(InProcessServer(*flags, **settings))


@pytest.fixture
def lessor_clock(lessor_server: "InProcessServer") -> "VirtualClock":
    """The clock of `lessor_server`: `jump(seconds)`, and `with auto_jump():`. Any server has its own as `.clock`."""
    return lessor_server.clock


@pytest.fixture
def lessor_client(lessor_server: "InProcessServer") -> Iterator["Client"]:
    """A client of `lessor_server`, closed when the test is over. Any server makes clients: `.client()`."""
    with lessor_server.client() as client:
        yield client


@pytest.fixture
def lessor_async_client(lessor_server: "InProcessServer") -> "AsyncClient":
    """As `lessor_client`, for asyncio. The test closes it in its own loop: `async with lessor_async_client:`."""
    return lessor_server.async_client()
