# SPDX-License-Identifier: Apache-2.0
"""A disk that fails under a running server: no client gets an answer to a lost write, and the server stops."""

import contextlib
import itertools
import logging
import sqlite3
from pathlib import Path

import grpc
import pytest

from lessor.api.proto import rpc_pb2
from lessor.durable.engine import DataDirError, EngineError
from lessor.durable.file_engine import FileEngine
from lessor.server.main import EXIT_DISK_FAILED
from tests.fault.crash_load import Stubs
from tests.faulty_disk import FaultyEngine
from tests.in_process import in_process


def stubs(address: str) -> Stubs:
    channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
    grpc.channel_ready_future(channel).result(10)
    return Stubs(channel)


def put_forever(calls: Stubs, acknowledged: list[int]) -> None:
    for number in itertools.count(1):
        calls("KV/Put", rpc_pb2.PutRequest(key=b"%d" % number, value=b"v"))
        acknowledged.append(number)


@pytest.mark.slow
@pytest.mark.parametrize("took_effect", [False, True], ids=["nothing written", "written but not reported"])
@pytest.mark.parametrize("fail_at", range(2, 9))
def test_what_was_acknowledged_before_the_disk_failed_is_there(
    tmp_path: Path, fail_at: int, took_effect: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FaultyEngine(FileEngine(tmp_path), fail_at, took_effect=took_effect, message="lessor.db: disk is full")
    acknowledged: list[int] = []
    with caplog.at_level(logging.CRITICAL, "lessor"), in_process(tmp_path, engine=engine) as failing:
        calls = stubs(failing.address)
        with pytest.raises(grpc.RpcError) as failure:
            put_forever(calls, acknowledged)
        failing.wait()
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE  # the connection was cut; no outcome was invented
    assert failing.exit_code == EXIT_DISK_FAILED
    assert "disk is full" in caplog.text or any("disk is full" in str(vars(record)) for record in caplog.records)
    with in_process(tmp_path) as again:
        kvs = stubs(again.address)("KV/Range", rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")).kvs
    found = sorted(int(kv.key) for kv in kvs)
    unknown = len(acknowledged) + 1
    assert found in (list(range(1, unknown)), list(range(1, unknown + 1)))


def test_a_disk_that_fails_at_the_first_write_is_an_error_of_the_start(tmp_path: Path) -> None:
    engine = FaultyEngine(FileEngine(tmp_path), 1, message="lessor.db: disk is full")
    with pytest.raises(EngineError, match="disk is full"), in_process(tmp_path, engine=engine):
        pass


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE lease SET ttl_s = 'long'",
        "UPDATE auth_user SET password = 'text'",
        "UPDATE alarm SET member_id = 'nobody'",
    ],
)
def test_rows_that_no_server_has_written_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    with in_process(tmp_path) as server:
        calls = stubs(server.address)
        calls("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=60))
        calls("Auth/UserAdd", rpc_pb2.AuthUserAddRequest(name="u", password="p"))
    with contextlib.closing(sqlite3.connect(tmp_path / "lessor.db", isolation_level=None)) as person:
        person.execute("INSERT INTO alarm VALUES ('5', 1, 1, 1)")
        person.execute(damage)
    with pytest.raises(DataDirError, match=r"lessor\.db: damaged \(") as caught, in_process(tmp_path):
        pass
    assert "\n" not in str(caught.value)
