# SPDX-License-Identifier: Apache-2.0
"""A whole server whose limits are made small: each that is reached is in its log, with the remedy, and in its metrics.

The limit of open files takes a process: test_signs_of_shortage.py."""

import asyncio
import logging
import re
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.client import AsyncClient, ServerError, run
from lessor.durable.engine import EngineError
from lessor.server.observe import shortages
from lessor.server.observe.shortages import Shortage
from lessor.testing.server import InProcessServer
from tests.conformance.raw_h2 import RawH2
from tests.in_process import in_process
from tests.metrics_page import fresh
from tests.whole.test_snapshot_stream import SlowEngine, save

pytestmark = pytest.mark.inside

Reach = Callable[[InProcessServer], None]


def counted(server: InProcessServer, shortage: Shortage) -> float:
    def read() -> str:
        with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=10) as reply:
            return str(reply.read().decode())

    text = fresh(read)
    found = re.search(rf'^lessor_limit_reached_total{{limit="{shortage.name}"}} (\S+)$', text, re.MULTILINE)
    assert found is not None, shortage
    return float(found[1])


def calls(call: Callable[[AsyncClient], Awaitable[object]]) -> Reach:
    """Makes a call, which may be refused."""

    async def make(address: str) -> None:
        async with AsyncClient(address) as client:
            await client.put("a", "1")
            await client.put("b", "2")
            await asyncio.gather(call(client), return_exceptions=True)

    return lambda server: run(make(server.address))


async def log_in(client: AsyncClient) -> None:
    await client.call("/etcdserverpb.Auth/UserAdd", rpc.AuthUserAddRequest(name="ann", password="x"))


def half_send(server: InProcessServer) -> None:
    with RawH2(server.address) as connection:
        connection.open("/etcdserverpb.KV/Put", b"\0\0\0\xff\xff" + bytes(5_000), end=False)
        connection.call("/etcdserverpb.KV/Range", b"\0\0\0\0\3\x0a\1k")


def save_one(server: InProcessServer) -> None:
    with pytest.raises(ServerError, match="too many requests"):
        run(save(server.address))


@pytest.mark.parametrize(
    ("shortage", "limit", "value", "reach"),
    [
        (shortages.PASSWORDS, "PASSWORDS_WAITING_MAX", 0, calls(log_in)),
        (shortages.SNAPSHOTS, "SNAPSHOTS_MAX", 0, save_one),
        (shortages.UNFINISHED, "UNFINISHED_BYTES_MAX", 1_000, half_send),
        (shortages.BATCH_ROWS, "BATCH_ROWS_MAX", 0, calls(lambda client: client.put("c", "3"))),
    ],
    ids=lambda each: each.name if isinstance(each, Shortage) else "",
)
def test_a_limit_that_is_reached_is_logged_and_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shortage: Shortage,
    limit: str,
    value: int,
    reach: Reach,
) -> None:
    with in_process(tmp_path) as server, caplog.at_level(logging.WARNING, "lessor"):
        assert counted(server, shortage) == 0
        monkeypatch.setattr(limits, limit, value)
        reach(server)
        assert counted(server, shortage) >= 1
    (line,) = (record for record in caplog.records if record.msg == shortage.text)
    assert (vars(line)["limit"], vars(line)["remedy"]) == (shortage.limit, shortage.remedy)


def test_without_threads_a_call_is_refused_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_thread(*_args: object, **_kinds: object) -> None:
        raise RuntimeError("can't start new thread")

    with in_process(tmp_path) as server:
        monkeypatch.setattr("lessor.server.services.passwords.ThreadPoolExecutor.submit", no_thread)
        calls(log_in)(server)
        monkeypatch.undo()
        assert counted(server, shortages.THREADS) == 1
    assert shortages.THREADS.text in caplog.text


def test_a_snapshot_that_fails_is_in_the_log_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = SlowEngine(tmp_path)
    engine.may_go_on.set()
    engine.problem = EngineError("the disk is full")
    with in_process(tmp_path, engine=engine) as server, pytest.raises(ServerError):
        run(save(server.address))
    assert [vars(line)["error"] for line in caplog.records if line.msg == "a snapshot failed"] == ["the disk is full"]
