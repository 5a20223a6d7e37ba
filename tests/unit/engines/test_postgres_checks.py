# SPDX-License-Identifier: Apache-2.0
"""What the answers of a PostgreSQL server mean: refused, used with a warning, or an old server."""

import pytest

from lessor.engines.postgres_checks import (
    Facts,
    Identity,
    facts_of,
    refusal,
    replaced,
    waits_for_standbys,
    warnings,
)

GOOD = Facts(
    version=150_018,
    in_recovery=False,
    read_only=False,
    fsync="on",
    full_page_writes="on",
    synchronous_commit="on",
    standbys="ANY 1 (*)",
    backend=71,
    user="keeper",
    service="",
)


def test_a_server_as_it_should_be_is_used_without_a_word() -> None:
    assert refusal(GOOD, may_lose_commits=False) is None
    assert refusal(GOOD._replace(synchronous_commit="remote_apply"), may_lose_commits=False) is None
    assert warnings(GOOD, 71) == ()
    assert waits_for_standbys(GOOD, may_lose_commits=False)


@pytest.mark.parametrize(
    ("changed", "says", "passes"),
    [
        ({"version": 120_022}, "PostgreSQL 12 is too old: 13 or newer", False),
        ({"in_recovery": True}, "name the primary, or all hosts", True),
        ({"read_only": True}, "set default_transaction_read_only = off", True),
        ({"fsync": "off"}, "set fsync = on", False),
        ({"full_page_writes": "off"}, "set full_page_writes = on", False),
        ({"synchronous_commit": "remote_write"}, "remote_write for the user keeper", False),
        ({"synchronous_commit": "local"}, "SET synchronous_commit = on", False),
        ({"synchronous_commit": "off"}, "SET synchronous_commit = on", False),
    ],
)
@pytest.mark.parametrize("may_lose", [False, True])
def test_what_is_refused_says_what_to_set(changed: dict[str, object], says: str, passes: bool, may_lose: bool) -> None:
    """Whatever the flag says: it speaks of standbys only."""
    found = refusal(GOOD._replace(**changed), may_lose_commits=may_lose)  # type: ignore[arg-type]
    assert found is not None
    assert says in found.text
    assert "\n" not in found.text
    assert found.passes is passes


def test_without_a_standby_the_flag_is_needed_and_warns() -> None:
    alone = GOOD._replace(standbys="")
    found = refusal(alone, may_lose_commits=False)
    assert found is not None
    assert "--engine-may-lose-commits" in found.text
    assert "ALTER SYSTEM SET synchronous_standby_names" in found.text
    assert refusal(alone, may_lose_commits=True) is None
    assert not waits_for_standbys(alone, may_lose_commits=True)
    assert len(warnings(alone, 71)) == 1


def test_a_service_that_replicates_below_needs_no_standby() -> None:
    service = GOOD._replace(standbys="", service="neon")
    assert refusal(service, may_lose_commits=False) is None
    assert not waits_for_standbys(service, may_lose_commits=False)
    assert warnings(service, 71) == ("synchronous_standby_names is empty; neon is trusted to replicate by itself",)


def test_another_process_than_the_connection_was_told_of_means_a_proxy() -> None:
    (line,) = warnings(GOOD, 4_711)
    assert "proxy or pooler" in line


def test_facts_are_read_from_text() -> None:
    row = [b"150018", b"false", b"off", b"on", b"on", b"on", b"ANY 1 (*)", b"71", b"keeper", b""]
    assert facts_of(row) == GOOD
    assert facts_of([b"150018", b"true", b"on", *row[3:]])[1:3] == (True, True)


@pytest.mark.parametrize(
    ("seen", "found", "old"),
    [
        (Identity("", 0), Identity("7", 3), False),
        (Identity("7", 3), Identity("7", 3), False),
        (Identity("7", 3), Identity("7", 4), False),
        (Identity("7", 3), Identity("7", 2), True),
        (Identity("7", 10), Identity("7", 9), True),
        (Identity("7", 3), Identity("8", 1), False),  # another server: its log is compared
        (Identity("7", 3), Identity("7", 0), False),  # not shown
    ],
)
def test_a_server_on_an_older_timeline_was_replaced(seen: Identity, found: Identity, old: bool) -> None:
    assert bool(replaced(seen, found)) is old
