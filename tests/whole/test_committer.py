# SPDX-License-Identifier: Apache-2.0
"""The commit thread beside commits: defragmentation in its place, sizes that are true, a commit that hangs."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code
from lessor.client import AsyncClient, ServerError, run
from lessor.durable.engine import EngineError
from lessor.durable.file_engine import FileEngine
from lessor.server.observe import health
from lessor.state.journal import Batch
from lessor.testing.server import InProcessServer
from tests.in_process import in_process

DEFRAGMENT = "/etcdserverpb.Maintenance/Defragment"


class Engine(FileEngine):
    """Keeps a diary; commits and defragmentations can be held up, defragmentations made to fail."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.diary: list[str] = []
        self.commits_may_go_on = threading.Event()
        self.commits_may_go_on.set()
        self.defragmenting = threading.Event()
        self.defragments_may_go_on = threading.Event()
        self.defragments_may_go_on.set()
        self.problem: Exception | None = None

    def commit(self, batch: Batch) -> None:
        assert self.commits_may_go_on.wait(10)
        self.diary += [f"put {row[2].decode()}" for row in batch.events]
        super().commit(batch)

    def defragment(self) -> None:
        self.defragmenting.set()
        assert self.defragments_may_go_on.wait(10)
        self.diary.append("defragment")
        if self.problem is not None:
            raise self.problem
        super().defragment()


def test_calls_that_come_while_one_waits_share_a_defragmentation(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.defragments_may_go_on.clear()

    async def story(address: str) -> None:
        async with AsyncClient(address) as client:
            first = asyncio.create_task(client.call(DEFRAGMENT, rpc.DefragmentRequest()))
            await asyncio.to_thread(engine.defragmenting.wait, 10)
            others = [asyncio.create_task(client.call(DEFRAGMENT, rpc.DefragmentRequest())) for _ in range(20)]
            await client.get("k")  # it came behind them, so they are in line
            engine.defragments_may_go_on.set()
            await asyncio.gather(first, *others)
            await client.call(DEFRAGMENT, rpc.DefragmentRequest())

    with in_process(tmp_path, engine=engine) as server:
        run(story(server.address))
    # The one in hand may have begun before the others came: they share the next. The last came when none waited.
    assert engine.diary.count("defragment") == 3


def test_calls_that_come_during_a_defragmentation_are_served_after_it_in_order(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.defragments_may_go_on.clear()

    async def story(address: str) -> list[int]:
        async with AsyncClient(address) as client:
            await client.put("before")
            defragmentation = asyncio.create_task(client.call(DEFRAGMENT, rpc.DefragmentRequest()))
            await asyncio.to_thread(engine.defragmenting.wait, 10)
            puts = [asyncio.create_task(client.put(f"during{index}")) for index in range(3)]
            done, _ = await asyncio.wait([defragmentation, *puts], timeout=0.05)
            assert not done
            engine.defragments_may_go_on.set()
            revisions = [(await put).header.revision for put in puts]
            reply: Any = await defragmentation
            assert not reply.HasField("header")
            return revisions

    with in_process(tmp_path, engine=engine) as server:
        revisions = run(story(server.address))
        assert revisions == sorted(revisions)
    assert engine.diary == ["put before", "defragment", "put during0", "put during1", "put during2"]


def test_a_defragmentation_that_fails_is_told_and_the_server_goes_on(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.problem = EngineError("no room for it")

    async def story(address: str) -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(ServerError, match=r"^no room for it$") as raised:
                await client.call(DEFRAGMENT, rpc.DefragmentRequest())
            assert raised.value.code == Code.UNKNOWN
            await client.put("after")

    with in_process(tmp_path, engine=engine) as server:
        run(story(server.address))
    assert server.exit_code == 0


def test_a_defragmentation_whose_caller_went_away_runs_to_its_end(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.defragments_may_go_on.clear()

    async def story(address: str) -> None:
        async with AsyncClient(address) as client:
            task = asyncio.create_task(client.call(DEFRAGMENT, rpc.DefragmentRequest()))
            await asyncio.to_thread(engine.defragmenting.wait, 10)
            task.cancel()
            await asyncio.wait([task])
            engine.defragments_may_go_on.set()
            await client.put("after")

    with in_process(tmp_path, engine=engine) as server:
        run(story(server.address))
    assert engine.diary == ["defragment", "put after"]


def test_a_commit_that_hangs_makes_unwell_and_unready_but_not_dead(tmp_path: Path) -> None:
    engine = Engine(tmp_path)

    async def story(server: InProcessServer) -> None:
        async with AsyncClient(server.address, timeout_s=None) as client:
            engine.commits_may_go_on.clear()
            put = asyncio.create_task(client.put("hangs"))
            committer = server.server.core.committer
            while committer.in_flight is None:
                await asyncio.sleep(0)
            committer._since_s -= 100  # as if it had begun long ago
            core = server.server.core
            assert server.call(lambda: health.health(core, "")).status == 503
            assert b"RANGE ERROR:etcdserver: request timed out" in server.call(lambda: health.health(core, "")).body
            assert server.call(lambda: health.health(core, "serializable=true")).status == 200
            assert server.call(lambda: health.checks(core, "/readyz", "")).status == 503
            assert server.call(lambda: health.checks(core, "/livez", "")).status == 200
            engine.commits_may_go_on.set()
            await put
            assert server.call(lambda: health.health(core, "")).status == 200

    with in_process(tmp_path, engine=engine) as server:
        run(story(server))


def test_a_stopped_backup_fails_and_leaves_nothing(tmp_path: Path) -> None:
    engine = FileEngine(tmp_path / "data")
    engine.open((1, 1))
    numbers = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 50000)"
    engine._tables._connection.execute(f"CREATE TABLE big AS {numbers} SELECT i, hex(i) FROM n")
    engine.stop_backups()
    with pytest.raises(EngineError, match="interrupted"):
        engine.backup(tmp_path / "copy")
    engine.close()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_data_that_is_over_the_quota_at_the_start_raises_the_alarm_with_the_first_write(tmp_path: Path) -> None:
    async def story(address: str) -> None:
        async with AsyncClient(address) as client:
            assert not (await client.maintenance.status()).errors
            with pytest.raises(ServerError, match="database space exceeded"):
                await client.put("one too many")

    with in_process(tmp_path, "--quota-backend-bytes=1") as server:
        run(story(server.address))
