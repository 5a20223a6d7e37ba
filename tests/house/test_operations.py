# SPDX-License-Identifier: Apache-2.0
"""docs/operations.md names each line that the server logs at warning or above, each alert and each exit code."""

import ast
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lessor.server import main as server_main
from lessor.server.observe import shortages
from lessor.testing.server import InProcessServer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
SOURCES = [
    path
    for folder in ("server", "replicated", "engines", "cluster", "durable", "state")
    for path in sorted((ROOT / "src" / "lessor" / folder).rglob("*.py"))
]
GRAVE = ("warning", "error", "critical", "exception")


def _texts(value: ast.expr, function: ast.AST) -> Iterator[str]:
    """The constant text of a line: itself, the constant part of an f-string, or what a variable is set to."""
    if isinstance(value, ast.Constant):
        yield str(value.value)
    elif isinstance(value, ast.JoinedStr):
        for part in value.values:
            yield from _texts(part.value if isinstance(part, ast.FormattedValue) else part, function)
    elif isinstance(value, ast.Name):
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    yield from _assigned(target, node.value, value.id)


def _assigned(target: ast.expr, value: ast.expr, name: str) -> Iterator[str]:
    if isinstance(target, ast.Name) and target.id == name and isinstance(value, ast.Constant):
        yield str(value.value)
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its_value in zip(target.elts, value.elts, strict=True):
            yield from _assigned(one, its_value, name)


def lines_of(source: str) -> set[str]:
    found: set[str] = set()
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in GRAVE
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
            ):
                texts = set(_texts(node.args[0], function))
                assert texts, f"a line of the log without a text that can be found: {ast.unparse(node)}"
                found |= texts
    return found


def test_what_is_found() -> None:
    source = 'def f(a):\n text, b = "one", 1\n log.warning(text)\n log.error(f"{a} two")\n log.info("three")\n'
    assert lines_of(source) == {"one", " two"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_each_grave_line_is_on_the_page(path: Path) -> None:
    missing = [text for text in lines_of(path.read_text()) if f"`{text}`" not in PAGE]
    assert not missing


@pytest.mark.parametrize("shortage", shortages.ALL, ids=lambda shortage: shortage.name)
def test_each_limit_is_on_the_page(shortage: shortages.Shortage) -> None:
    assert f"| `{shortage.text}` | `{shortage.name}` |" in PAGE


def test_each_exit_code_is_on_the_page() -> None:
    codes = {value for name, value in vars(server_main).items() if name.startswith("EXIT_")}
    assert len(codes) >= 4
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes | {0, 1, 2} == rows


# --- alerts ---------------------------------------------------------------------------------------------------------

RULES = yaml.safe_load((ROOT / "examples" / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
# Shown by servers on a shared log alone: server/observe/exposition.py.
ON_A_SHARED_LOG = {"lessor_follower_lag_seconds", "lessor_claims_total", "lessor_tenure_lapses_total"}
_METRIC = re.compile(r"\b((?:lessor|etcd|process)_[a-z_]+?)(?:_bucket)?\b")


def test_each_alert_is_on_the_page_once() -> None:
    assert len(RULES) > 10
    assert re.findall(r"^\| (Lessor\w+) \|", PAGE, re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_alerts_ask_for_metrics_that_there_are() -> None:
    with InProcessServer() as server, urllib.request.urlopen(f"http://{server.address}/metrics", timeout=10) as reply:
        page = reply.read().decode()
    asked = {name for rule in RULES for name in _METRIC.findall(rule["expr"])}
    shown = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    assert asked - shown == ON_A_SHARED_LOG
