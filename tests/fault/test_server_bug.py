# SPDX-License-Identifier: Apache-2.0
"""A bug in what a turn does for all: the server goes, and neither a client nor the disk sees what it left half done."""

import logging
from pathlib import Path

import grpc
import pytest

from lessor.api.proto import rpc_pb2
from lessor.server.main import EXIT_BUG
from lessor.testing.server import InProcessServer
from tests.fault.crash_load import Stubs
from tests.fault.test_server_disk import stubs
from tests.in_process import in_process


def keys_in(calls: Stubs) -> list[bytes]:
    return [kv.key for kv in calls("KV/Range", rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")).kvs]


def test_a_bug_while_leases_end_stops_the_server_and_saves_nothing_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(_ended: int, _late_s: float) -> None:
        raise RuntimeError("the lease has ended in memory")

    with caplog.at_level(logging.CRITICAL, "lessor"), in_process(tmp_path) as failing:
        calls = stubs(failing.address)
        failing.server.core.turn._on_expired = raises
        lease = calls("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=1)).ID
        calls("KV/Put", rpc_pb2.PutRequest(key=b"k", lease=lease))
        failing.wait()
        with pytest.raises(grpc.RpcError):
            keys_in(calls)
    assert failing.exit_code == EXIT_BUG
    assert "a bug broke off a turn" in caplog.text
    assert any(record.exc_info for record in caplog.records), "no traceback"
    with InProcessServer(data_dir=tmp_path) as again:  # its clock stands still, so the lease lives
        assert keys_in(stubs(again.address)) == [b"k"]
