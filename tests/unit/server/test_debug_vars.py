# SPDX-License-Identifier: Apache-2.0
"""/debug/vars: the indexes of the log agree, whatever was committed last."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lessor.server.observe import debug_vars


@pytest.mark.parametrize(("newest_with_rows", "durable"), [(8, 7), (7, 7), (7, 9)])
def test_the_next_index_is_above_the_committed_one(newest_with_rows: int, durable: int) -> None:
    """Batches that only save the data clock become durable behind the newest one with rows."""
    observed = SimpleNamespace(
        machine=SimpleNamespace(
            identity=SimpleNamespace(member_id=10, term=2),
            journal=SimpleNamespace(newest_with_rows=newest_with_rows),
        ),
        gate=SimpleNamespace(durable=durable),
    )
    raft = json.loads(debug_vars.body(cast(Any, observed)))["raft.status"]
    assert raft["applied"] == raft["commit"] == durable
    assert raft["progress"]["a"]["next"] > max(durable, newest_with_rows)
