# SPDX-License-Identifier: Apache-2.0
"""Writes the figures of docs/performance.md and docs/performance-table.md from the newest result of each row.

Laws
- Those figures are not written by hand: what stands between `<!-- results: NAME -->` and `<!-- end -->` is replaced,
  the prose around it is not touched. Each page asks for the blocks that it wants, by name.
- A row with no result is not in the table; a goal that was not reached is shown as such.
- bench/results keeps the newest result of each row. An older one is removed once the newer one is on the pages, unless
  it compares with a server that the newer one left out; the repository's history has it.

    python -m bench.report    (or scripts/bench --report)
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.growth import KINDS, SIZES
from bench.harness import COMPILED, ETCD, NEWER, OURS, ROOT
from bench.plot import panels
from bench.rows import RESULTS, quantity, reached_by, times

PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "performance-table.md")
PLOT = ROOT / "docs" / "growth.svg"
NONE_YET = "No results yet: run `scripts/bench`."
# The order of the table; what is not named here comes at its end.
ORDER = (
    *("lease_grant_1x1", "lease_grant_10x1", "lease_grant_10x20", "lease_grant_200x4"),
    *("put_own_lease", "put_sustained", "put_one_lease", "range_one_key", "lease_time_to_live"),
    *("txn_create", "txn_sustained"),
    *("keepalive_10x64", "keepalive_500x1", "keepalive_2000x1", "gateway_grant", "gateway_range"),
    *("expiry_idle", "expiry_10k", "expiry_100k", "watch_fanout", "watch_fanout_streams", "memory_and_restart"),
    *("tail", "many_connections", "many_watchers_connections", "many_watchers_streams"),
    *("many_watchers_few_streams", "many_watchers_one_key"),
    *("growth", "growth_1m"),
)
LIMITS_ROW = "client_limits"
# The figures for somebody who decides, by row and figure.
FEW = (
    ("lease_grant_1x1", "rate"),
    ("lease_grant_10x20", "rate"),
    ("put_own_lease", "rate"),
    ("keepalive_500x1", "rate"),
    ("expiry_idle", "late_p99_ms"),
    ("memory_and_restart", "restart_s"),
)
Result = dict[str, Any]


def whole(folder: Path) -> list[tuple[Path, Result]]:
    """The results of whole runs, oldest first: none that was scaled down, none of before there were rows."""
    read = [(path, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    found = [(path, result) for path, result in read if result.get("row") and result["options"]["scale"] == 1]
    return sorted(found, key=lambda item: str(item[1]["date"]))


def newest(folder: Path) -> dict[str, Result]:
    """The newest whole result of each row, in the order of the table."""
    found = {result["row"]: result for _, result in whole(folder)}
    place = {name: number for number, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: (place.get(item[0], len(place)), item[0])))


def superseded(folder: Path) -> list[Path]:
    """The files of results whose row has a newer one, of the same servers at least."""
    found, latest = whole(folder), newest(folder)
    return [
        path
        for path, result in found
        if result != latest[result["row"]] and result["servers"].keys() <= latest[result["row"]]["servers"].keys()
    ]


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def compared(results: dict[str, Result]) -> tuple[list[str], list[str], dict[str, str]]:
    """The etcds and the builds of ours that were measured, and the version of each."""
    peers = [name for name in (ETCD, NEWER) if any(name in result["servers"] for result in results.values())]
    builds = [name for name in (OURS, COMPILED) if any(name in result["servers"] for result in results.values())]
    versions = {name: version for result in results.values() for name, version in result["versions"].items()}
    return peers, builds, versions


def claims(results: dict[str, Result]) -> str:
    peers, builds, versions = compared(results)
    head = ["work", *(called(versions, name) for name in (*peers, *builds))]
    head += [*(f"times {versions[name]}" for name in peers), "target", "reached"]
    rows = []
    for name, result in results.items():
        if name == LIMITS_ROW or OURS not in result["servers"] or (name == "growth" and "growth_1m" in results):
            continue
        for goal in result["goals"]:
            shown = [figure(result, server, goal) for server in (*peers, *builds)]
            rows.append([goal["text"], *shown, *(times(goal, peer) for peer in peers)])
            rows[-1] += [goal["target"], reached_by(goal)]
    return markdown(head, rows) if rows else NONE_YET


def few(results: dict[str, Result]) -> str:
    """The figures that decide, without targets."""
    peers, builds, versions = compared(results)
    shown = (*peers, *builds)
    rows = [
        [goal["text"], *(figure(results[name], server, goal) for server in shown)]
        for name, wanted in FEW
        if name in results
        for goal in results[name]["goals"]
        if goal["figure"] == wanted
    ]
    return markdown(["work", *(called(versions, name) for name in shown)], rows) if rows else NONE_YET


def slower(results: dict[str, Result]) -> str:
    """Where an etcd is better than a build of ours; the rows that compare a server with itself are left out."""
    peers, _, versions = compared(results)
    rows = []
    for result in results.values():
        about = result["goals"][0]["text"].partition(":")[0]
        for goal in result["goals"]:
            ratios = [ratio for build in (goal, goal.get(COMPILED, {})) for ratio in build.get("ratio", {}).values()]
            if goal["unit"] != "x" and min(ratios, default=1.0) < 1.0:
                text = goal["text"].replace("- ", f"{about}: ", 1) if goal["text"].startswith("- ") else goal["text"]
                rows.append([text, *(times(goal, peer) for peer in peers)])
    return markdown(["work", *(f"times {versions[name]}" for name in peers)], rows) if rows else "Nothing."


def figure(result: Result, server: str, goal: dict[str, Any]) -> str:
    one = result["servers"].get(server)
    if one is None:
        return ""
    bound = " (client)" if one["client_bound"] else ""
    return quantity(one["median"][goal["figure"]], goal["unit"]) + bound


def grown(results: dict[str, Result]) -> Result | None:
    """The growth with the most sizes that was measured."""
    return results.get("growth_1m") or results.get("growth")


def by_kind(result: Result, kind: str) -> dict[str, list[float]]:
    """Of each server, the figures of a kind for as many sizes as there are."""
    return {
        server: [one["median"][f"{kind}_{size}"] for size in SIZES if f"{kind}_{size}" in one["median"]]
        for server, one in result["servers"].items()
    }


def called(versions: dict[str, str], server: str) -> str:
    return {OURS: "Lessor", COMPILED: "compiled"}.get(server) or f"etcd {versions[server]}"


def growth_table(results: dict[str, Result]) -> str:
    result = grown(results)
    if result is None:
        return NONE_YET
    count = max(len(values) for values in by_kind(result, "grant").values())
    rows = [
        [f"{kind}, {called(result['versions'], server)}", *(quantity(value, unit) for value in values)]
        for kind, unit in KINDS.items()
        for server, values in by_kind(result, kind).items()
    ]
    return markdown(["with so many leases and keys", *(f"{size:,}" for size in list(SIZES.values())[:count])], rows)


def limits(results: dict[str, Result]) -> str:
    result = results.get(LIMITS_ROW)
    if result is None:
        return NONE_YET
    found = result["servers"][OURS]["median"]
    rows = []
    for goal in result["goals"]:
        load = goal["figure"].removesuffix("_could")
        rows.append([load, quantity(found[f"{load}_rate"], "/s"), quantity(found[goal["figure"]], "/s")])
    return markdown(["load", "against the null server", "the client, of a whole core"], rows)


def about(results: dict[str, Result]) -> str:
    if not results:
        return NONE_YET
    machines = list(results.values())
    one = machines[-1]["machine"]
    dates = sorted(result["date"][:10] for result in machines)
    commits = sorted({result["commit"] for result in machines})
    libraries = ", ".join(f"{name} {version}" for name, version in one["libraries"].items())
    return "\n".join(
        [
            f"- {one['processor']}, {one['cores']} cores, {one['memory_gib']:g} GiB; {one['system']}",
            f"- data on {one['file_system']}; writing 4 KiB and fsync: {one['fsync_4k_median_ms']:g} ms (median)",
            f"- Python {one['python']}, {libraries}",
            f"- measured {dates[0]}" + (f" to {dates[-1]}" if dates[-1] != dates[0] else ""),
            f"- of commit {', '.join(commits)}",
        ]
    )


def plot(results: dict[str, Result]) -> str | None:
    result = grown(results)
    if result is None:
        return None
    shown = {
        f"{kind}, {unit}": {
            called(result["versions"], server): values for server, values in by_kind(result, kind).items()
        }
        for kind, unit in KINDS.items()
    }
    return panels(shown, list(SIZES))


BLOCKS: dict[str, Callable[[dict[str, Result]], str]] = {
    "few": few,
    "slower": slower,
    "table": claims,
    "growth": growth_table,
    "client": limits,
    "machine": about,
    "plot": lambda results: NONE_YET if grown(results) is None else f"![how cost grows]({PLOT.name})",
}


def filled(page: str, results: dict[str, Result]) -> str:
    """The page with what its markers ask for."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{BLOCKS[match[2]](results)}\n\n{match[3]}"

    return re.sub(r"(<!-- results: (\w+) -->).*?(<!-- end -->)", block, page, flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Writes the figures of docs/performance.md and performance-table.md from bench/results, and removes"
        " the results there that a newer one of the same row replaces."
    )
    parser.parse_args(arguments)
    results = newest(RESULTS)
    for page in PAGES:
        page.write_text(filled(page.read_text(), results))
    if drawn := plot(results):
        PLOT.write_text(drawn)
    for path in superseded(RESULTS):
        path.unlink()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
