# SPDX-License-Identifier: Apache-2.0
"""Holds the examples of deployments to the server: each variable that they set for it is one of its flags."""

import re
from pathlib import Path

import pytest
import yaml

from lessor.server.command import serve

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# Where variables of the server stand; in compose.yaml also those of the etcd beside it.
PATTERNS = ("*.env", "lessor@.service", "Dockerfile", "compose.yaml", "kubernetes/*.yaml")
FILES = [path for pattern in PATTERNS for path in sorted(EXAMPLES.rglob(pattern))]
OF_ETCD = {"ETCD_INITIAL_CLUSTER", "ETCD_INITIAL_ADVERTISE_PEER_URLS", "ETCD_LISTEN_PEER_URLS", "ETCD_IMAGE"}


def test_there_are_examples() -> None:
    folders = {path.parent.name for path in FILES}
    assert folders == {"compose", "docker", "kubernetes", "systemd"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_the_variables_of_an_example_are_flags(path: Path) -> None:
    known = {str(parameter.envvar) for parameter in serve.params if isinstance(parameter.envvar, str)}
    assert "ETCD_ENGINE_MAY_LOSE_COMMITS" in known
    if path.suffix == ".yaml":
        known |= OF_ETCD
    named = set(re.findall(r"\bETCD_[A-Z_]+", path.read_text()))
    assert named
    assert named <= known


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_yaml(path: Path) -> None:
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("compose.yaml")), ids=lambda path: path.parent.name)
def test_the_dockerfile_of_a_composition_is_there(path: Path) -> None:
    (name,) = set(re.findall(r"dockerfile: ([^\s}]+)", path.read_text()))
    (context,) = set(re.findall(r"context: ([./]+)", path.read_text()))
    assert (path.parent / context / name).is_file()
