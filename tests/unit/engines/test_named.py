# SPDX-License-Identifier: Apache-2.0
"""What people are told of where a log is."""

import pytest

from lessor.durable.shared_log import LogRefusedError
from lessor.engines.named import place


def test_a_place_has_no_secrets() -> None:
    pytest.importorskip("psycopg", reason="the package psycopg is not here")
    assert place("postgres://ann:se%2Fcret@db1:5432,db2/data?password=hush&schema=two") == (
        "postgres://db1:5432,db2/data?schema=two"
    )
    assert place("etcd://ann:secret@h1:2379,h2/lessor") == "etcd://h1:2379,h2/lessor"
    for url in ("etcd://ann:se@cret@", "postgres://ann:se/cret@db", "redis://h"):
        with pytest.raises(LogRefusedError) as error:
            place(url)
        assert "cret" not in str(error.value)
