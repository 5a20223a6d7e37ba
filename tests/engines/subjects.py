# SPDX-License-Identifier: Apache-2.0
"""The engines that the contract is tried on.

A subject is one place that holds logs. `log(name)` gives a new `SharedLog`, not yet opened, on the log of that name;
logs of one name are one log. `place(name)` is what another process needs to reach it (writer.py), where one can.
"""

import itertools
from collections.abc import Callable
from typing import Protocol

from lessor.durable.shared_log import SharedLog
from tests.engines.memory import MemoryLog, Store
from tests.engines.postgres_server import PostgresServer


class Subject(Protocol):
    def log(self, name: str) -> SharedLog: ...
    def place(self, name: str) -> tuple[str, str] | None: ...


class MemorySubject:
    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}

    def log(self, name: str) -> SharedLog:
        return MemoryLog(self._stores.setdefault(name, Store()))

    def place(self, name: str) -> None:
        return None


class PostgresSubject:
    """One server, without a standby. Each subject has schemas of its own there."""

    _numbers = itertools.count(1)

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._prefix = f"subject{next(self._numbers)}"

    def log(self, name: str) -> SharedLog:
        return at_place(self.place(name))

    def place(self, name: str) -> tuple[str, str]:
        return "postgres", self._server.url(f"{self._prefix}_{name}")


def _postgres(url: str) -> SharedLog:
    from lessor.engines.log_postgres import PostgresLog

    return PostgresLog(url, may_lose_commits=True, answer_s=20.0)


OPENERS: dict[str, Callable[[str], SharedLog]] = {"postgres": _postgres}


def at_place(place: tuple[str, str]) -> SharedLog:
    kind, url = place
    return OPENERS[kind](url)
