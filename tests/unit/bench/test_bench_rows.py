# SPDX-License-Identifier: Apache-2.0
"""What the benches conclude from figures, and what the page about performance makes of it.

Laws: a goal is judged by medians, against etcd, in the sense of its unit; a figure that is the client's own never
reaches one; the page's prose stays, its tables are the newest results'.
"""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as suite
from bench import growth, report, rows
from bench.harness import COMPILED, ETCD, NEWER, OURS
from bench.plot import panels
from bench.rows import Goal


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["growth", "--only", "etcd"],
            "bench: --only is not the name of a bench: put options behind --, as in "
            "`python -m bench growth -- --only etcd`",
        ),
        (
            ["--rounds", "1", "--", "--huge"],
            "bench: --rounds is not the name of a bench: put options behind --, as in "
            "`python -m bench -- --rounds 1 --huge`",
        ),
    ],
)
def test_an_option_among_the_words_is_one_line_that_says_where_it_belongs(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suite.main(arguments) == 2
    assert capsys.readouterr().err == said + "\n"


def verdict(goal: Goal, ours: float, peer: float, *, peer_bound: bool = False) -> dict[str, Any]:
    found = {OURS: rows.summary([{goal.figure: ours}]), ETCD: rows.summary([{goal.figure: peer}])}
    found[ETCD][rows.BOUND] = peer_bound
    return rows.verdict(goal, found)


@pytest.mark.parametrize(
    ("goal", "ours", "peer", "ratio", "reached"),
    [
        (Goal("rate", "", "/s", 2), 200.0, 100.0, 2.0, True),
        (Goal("rate", "", "/s", 2), 199.0, 100.0, 1.99, False),
        (Goal("took", "", "s", 2), 1.0, 2.0, 2.0, True),
        (Goal("took", "", "s", 2), 2.0, 1.0, 0.5, False),
        (Goal("late", "", "ms", at_most=3), 3.0, 1.0, 0.33, True),
        (Goal("late", "", "ms", at_most=3), 3.1, 300.0, 96.77, False),
        (Goal("kept", "", "x", at_least=0.7), 0.7, 0.1, 7.0, True),
        (Goal("kept", "", "x", at_least=0.7), 0.6, 0.1, 6.0, False),
        (Goal("rate", "", "/s"), 1.0, 2.0, 0.5, None),
    ],
)
def test_a_goal_is_judged_in_the_sense_of_its_unit(
    goal: Goal, ours: float, peer: float, ratio: float, reached: bool | None
) -> None:
    said = verdict(goal, ours, peer)
    assert said["ratio"] == {ETCD: ratio}
    assert said["reached"] is reached


def test_a_figure_of_etcd_that_is_the_clients_reaches_no_goal() -> None:
    goal = Goal("rate", "", "/s", 2)
    assert verdict(goal, 300.0, 100.0)["reached"]
    assert not verdict(goal, 300.0, 100.0, peer_bound=True)["reached"]


def test_a_summary_is_of_what_all_runs_have() -> None:
    runs = [
        {"rate": 3.0, "kind": "grant", rows.BOUND: False, "once": 1},
        {"rate": 1.0, "kind": "grant", rows.BOUND: True},
        {"rate": 8.0, "kind": "grant", rows.BOUND: False},
    ]
    said = rows.summary(runs)
    assert (said["median"], said["least"], said["most"]) == ({"rate": 3.0}, {"rate": 1.0}, {"rate": 8.0})
    assert said[rows.BOUND]


@pytest.mark.parametrize(
    ("plain", "compiled", "said"),
    [(50.0, 60.0, "yes"), (40.0, 60.0, "compiled"), (40.0, 49.0, "**no**"), (50.0, 40.0, "yes")],
)
def test_a_goal_may_be_reached_by_the_compiled_build_alone(plain: float, compiled: float, said: str) -> None:
    goal = Goal("rate", "LeaseGrant", "/s", 5)
    figures = {OURS: plain, COMPILED: compiled, ETCD: 10.0}
    found = {"grant": result("grant", "2026-01-01", {name: {"rate": rate} for name, rate in figures.items()}, goal)}
    ratios = f"{plain / 10:g} / {compiled / 10:g}"
    assert f"| LeaseGrant | 10/s | {plain:g}/s | {compiled:g}/s | {ratios} | 5 x | {said} |" in report.claims(found)


def test_each_row_of_the_short_table_exists() -> None:
    held = {row.name: row for of_file in suite.all_rows().values() for row in of_file}
    for name, wanted in report.FEW:
        assert wanted in [goal.figure for goal in held[name].goals]


def test_each_block_stands_on_one_page() -> None:
    pages = [page.read_text() for page in report.PAGES]
    for name in report.BLOCKS:
        assert sum(f"<!-- results: {name} -->" in page for page in pages) == 1


def test_each_row_has_one_name_and_is_found_by_a_word() -> None:
    held = [row.name for of_file in suite.all_rows().values() for row in of_file]
    assert len(held) == len(set(held))
    named = {name for name in report.ORDER if name not in ("watch_fanout",)}
    assert named <= set(held)


def result(row: str, date: str, figures: dict[str, dict[str, float]], *goals: Goal) -> dict[str, Any]:
    servers = {name: rows.summary([of_one]) for name, of_one in figures.items()}
    said: dict[str, Any] = {"row": row, "date": date, "commit": "c0", "servers": servers, "options": {"scale": 1}}
    said["versions"] = {OURS: "0.1", ETCD: "3.5.1", NEWER: "3.6.16"}
    said["machine"] = {
        "processor": "P",
        "cores": 2,
        "memory_gib": 4.0,
        "system": "S",
        "file_system": "ext4",
        "fsync_4k_median_ms": 0.2,
        "python": "3.11",
        "libraries": {"uvloop": "1"},
    }
    said["goals"] = [rows.verdict(goal, servers) for goal in goals]
    return said


PAGE = """prose
<!-- results: table -->
old
<!-- end -->
more prose
<!-- results: growth -->
<!-- end -->
<!-- results: machine --><!-- end -->
"""


def test_the_page_shows_the_newest_result_and_keeps_the_prose(tmp_path: Path) -> None:
    goal = Goal("rate", "LeaseGrant", "/s", 5)
    for date, ours in (("2026-01-01", 100.0), ("2026-01-03", 60_000.0), ("2026-01-02", 200.0)):
        figures = {OURS: {"rate": ours}, ETCD: {"rate": 10_000.0}, NEWER: {"rate": 20_000.0}}
        said = result("lease_grant_10x20", date, figures, goal)
        (tmp_path / f"{date}-grant.json").write_text(json.dumps(said))
    said = result("lease_grant_10x20", "2026-01-04", {OURS: {"rate": 1.0}}, goal)
    (tmp_path / "tried.json").write_text(json.dumps({**said, "options": {"scale": 0.1}}))
    (tmp_path / "older.json").write_text('{"claim": "of before there were rows"}')
    page = report.filled(PAGE, report.newest(tmp_path))
    assert "| LeaseGrant | 10,000/s | 20,000/s | 60,000/s | 6 | 3 | 5 x | yes |" in page
    assert "old" not in page
    assert page.startswith("prose\n")
    assert "\nmore prose\n" in page
    assert report.filled(page, report.newest(tmp_path)) == page
    assert f"<!-- results: growth -->\n\n{report.NONE_YET}\n\n<!-- end -->" in page


def test_the_few_rows_and_those_that_are_slower() -> None:
    goals = (
        Goal("rate", "LeaseGrant, 1 x 1", "/s"),
        Goal("p99_ms", "- of others, p99", "ms"),
        Goal("kept", "kept", "x"),
    )
    figures = {
        OURS: {"rate": 30.0, "p99_ms": 4.0, "kept": 0.5},
        COMPILED: {"rate": 50.0, "p99_ms": 1.0, "kept": 0.5},
        ETCD: {"rate": 40.0, "p99_ms": 2.0, "kept": 1.0},
    }
    found = {"lease_grant_1x1": result("lease_grant_1x1", "2026-01-01", figures, *goals)}
    assert report.few(found).splitlines()[2:] == ["| LeaseGrant, 1 x 1 | 40/s | 30/s | 50/s |"]
    assert report.slower(found).splitlines()[2:] == [
        "| LeaseGrant, 1 x 1 | 0.75 / 1.25 |",
        "| LeaseGrant, 1 x 1: of others, p99 | 0.5 / 2 |",
    ]
    found = {"lease_grant_1x1": result("lease_grant_1x1", "2026-01-01", {**figures, OURS: figures[COMPILED]}, *goals)}
    assert report.slower(found) == "Nothing."


def test_a_result_is_superseded_by_a_newer_one_of_the_same_servers(tmp_path: Path) -> None:
    goal = Goal("rate", "LeaseGrant", "/s")
    for name, date, servers, scale in (
        ("old", "2026-01-01", (OURS, ETCD), 1),
        ("new", "2026-01-02", (OURS, ETCD), 1),
        ("small", "2026-01-01", (OURS, ETCD), 0.1),
    ):
        said = result("grant", date, {server: {"rate": 1.0} for server in servers}, goal)
        (tmp_path / f"{name}.json").write_text(json.dumps({**said, "options": {"scale": scale}}))
    assert report.superseded(tmp_path) == [tmp_path / "old.json"]
    alone = result("grant", "2026-01-03", {OURS: {"rate": 1.0}}, goal)
    (tmp_path / "alone.json").write_text(json.dumps(alone))
    assert report.superseded(tmp_path) == []


def test_growth_is_a_line_for_each_kind_and_server_and_a_plot() -> None:
    kinds = dict.fromkeys((f"{kind}_{size}" for kind in growth.KINDS for size in ("1k", "10k")), 7.0)
    found = {"growth": result("growth", "2026-01-01", {OURS: kinds, ETCD: kinds})}
    table = report.growth_table(found)
    assert "| with so many leases and keys | 1,000 | 10,000 |" in table
    assert "| restart, etcd 3.5.1 | 7 s | 7 s |" in table
    drawn = report.plot(found)
    assert drawn is not None
    lines = ElementTree.fromstring(drawn).findall("{*}polyline")
    assert len(lines) == 2 * len(growth.KINDS)


def test_a_plots_lines_stay_in_their_panel() -> None:
    drawn = ElementTree.fromstring(panels({"a & b": {"x": [0.0, 5.0, 10.0], "y": [1.0]}}, ["1", "2", "3"]))
    (x, y) = (line.attrib["points"].split() for line in drawn.findall("{*}polyline"))
    heights = [float(point.partition(",")[2]) for point in x]
    assert heights[0] > heights[1] > heights[2] > 0
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=0.2)
    assert len(y) == 1
