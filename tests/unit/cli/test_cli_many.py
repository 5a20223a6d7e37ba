# SPDX-License-Identifier: Apache-2.0
"""Figures and tables of the commands that look after servers. The expected lines are what etcdctl 3.6 printed."""

import pytest

from lessor.cli.many import size_text, table, took_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 B"), (9, "9 B"), (999, "999 B"), (1000, "1.0 kB"), (9949, "9.9 kB"), (16_384, "16 kB")),
        *((20_480, "20 kB"), (24_576, "25 kB"), (28_672, "29 kB"), (36_864, "37 kB"), (2_147_483_648, "2.1 GB")),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0.005132742, "5.132742ms"), (5.00103224, "5.001032s"), (0.0105, "10.5ms"), (0.0009821, "982.1µs"), (2.0, "2s")],
)
def test_durations(duration_s: float, text: str) -> None:
    assert took_text(duration_s) == text


def test_a_table_is_centred_above_and_right_below() -> None:
    text = table(("endpoint", "hash", "hash revision"), [["127.0.0.1:23790", "1125682900", "5"]]).decode()
    assert text == (
        "┌─────────────────┬────────────┬───────────────┐\n"
        "│    ENDPOINT     │    HASH    │ HASH REVISION │\n"
        "├─────────────────┼────────────┼───────────────┤\n"
        "│ 127.0.0.1:23790 │ 1125682900 │             5 │\n"
        "└─────────────────┴────────────┴───────────────┘\n"
    )


def test_a_table_without_rows_has_one_rule_less() -> None:
    """As etcdctl 3.7 prints `endpoint hashkv` when no endpoint answered."""
    assert table(("endpoint", "hash"), []).decode() == (
        "┌──────────┬──────┐\n│ ENDPOINT │ HASH │\n└──────────┴──────┘\n"
    )


def test_a_long_cell_stays_on_its_line() -> None:
    """As etcdctl 3.7 prints `endpoint health` beside two alarms; 3.6 broke such a line."""
    lines = table(("health", "error"), [["false", "Active Alarm(s): NOSPACE CORRUPT "]]).decode().splitlines()
    assert lines[1:-1] == [
        "│ HEALTH │              ERROR               │",
        "├────────┼──────────────────────────────────┤",
        "│  false │ Active Alarm(s): NOSPACE CORRUPT │",
    ]
