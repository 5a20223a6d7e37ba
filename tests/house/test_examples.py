# SPDX-License-Identifier: Apache-2.0
"""Holds the examples of deployments to the server: each variable that they set for it is one of its flags."""

import re
from pathlib import Path

import pytest

from lessor.server.command import serve

CLUSTER = Path(__file__).resolve().parents[2] / "examples" / "cluster"
# Where variables of the server stand; in compose.yaml also those of the etcd beside it.
FILES = [*CLUSTER.rglob("*.env"), *CLUSTER.rglob("*.service"), *CLUSTER.rglob("Dockerfile"), *CLUSTER.rglob("*.yaml")]
OF_ETCD = {"ETCD_INITIAL_CLUSTER", "ETCD_INITIAL_ADVERTISE_PEER_URLS", "ETCD_LISTEN_PEER_URLS", "ETCD_IMAGE"}


def test_there_are_examples() -> None:
    assert {path.suffix for path in FILES} == {".env", ".service", "", ".yaml"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_variables_of_an_example_are_flags(path: Path) -> None:
    known = {str(parameter.envvar) for parameter in serve.params if isinstance(parameter.envvar, str)}
    assert "ETCD_ENGINE_MAY_LOSE_COMMITS" in known
    if path.suffix == ".yaml":
        known |= OF_ETCD
    named = set(re.findall(r"\bETCD_[A-Z_]+", path.read_text()))
    assert named
    assert named <= known
