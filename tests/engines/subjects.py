# SPDX-License-Identifier: Apache-2.0
"""The engines that the contract is tried on.

A subject is one place that holds logs. `log(name)` gives a new `SharedLog`, not yet opened, on the log of that name;
logs of one name are one log. `place(name)` is what another process needs to reach it (writer.py), where one can.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable

from lessor.durable.shared_log import SharedLog
from tests.conformance.server_process import AnyServer
from tests.engines.memory import MemoryLog, Store
from tests.engines.postgres_server import PostgresServer

PATIENT_S = 30.0  # for an answer: the machine may be busy


class Subject(ABC):
    """Whoever makes one closes it, and with it the logs that it gave."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self._prefix = f"subject{next(self._numbers)}"  # of names: servers outlive a subject
        self._given: list[SharedLog] = []

    def log(self, name: str = "one") -> SharedLog:
        self._given.append(self._log(name))
        return self._given[-1]

    def close(self) -> None:
        for log in self._given:
            log.close()

    @abstractmethod
    def place(self, name: str) -> tuple[str, str] | None: ...

    def _log(self, name: str) -> SharedLog:
        place = self.place(name)
        assert place is not None
        return at_place(place)


class MemorySubject(Subject):
    def __init__(self) -> None:
        super().__init__()
        self._stores: dict[str, Store] = {}

    def place(self, name: str) -> None:
        return None

    def _log(self, name: str) -> SharedLog:
        return MemoryLog(self._stores.setdefault(name, Store()))


class PostgresSubject(Subject):
    """One server, without a standby."""

    def __init__(self, server: PostgresServer) -> None:
        super().__init__()
        self._server = server

    def place(self, name: str) -> tuple[str, str]:
        return "postgres", self._server.url(f"{self._prefix}_{name}")


class EtcdSubject(Subject):
    """An etcd of one member, or what speaks its API."""

    def __init__(self, server: AnyServer) -> None:
        super().__init__()
        self._address = server.address

    def place(self, name: str) -> tuple[str, str]:
        return "etcd", f"etcd://{self._address}/{self._prefix}/{name}"


def _postgres(url: str) -> SharedLog:
    from lessor.engines.log_postgres import PostgresLog  # psycopg is not everywhere

    return PostgresLog(url, may_lose_commits=True, answer_s=PATIENT_S)


def _etcd(url: str) -> SharedLog:
    from lessor.engines.log_etcd import EtcdLog

    return EtcdLog(url, local=True, append_s_max=PATIENT_S, read_s_max=PATIENT_S)


OPENERS: dict[str, Callable[[str], SharedLog]] = {"postgres": _postgres, "etcd": _etcd}


def at_place(place: tuple[str, str]) -> SharedLog:
    kind, url = place
    return OPENERS[kind](url)
