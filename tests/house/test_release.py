# SPDX-License-Identifier: Apache-2.0
"""scripts/release_checks.py finds what must not be published."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "release_checks.py"
PURE, COMPILED = "lessor-1.0-py3-none-any.whl", "lessor-1.0-cp311-cp311-linux_x86_64.whl"
WANTED = {"lessor/__init__.py", "lessor/state/machine.py", "lessor/py.typed"}
LICENCE = "lessor-1.0.dist-info/licenses/LICENSE"
BUILT = "lessor/state/machine.cpython-311-x86_64-linux-gnu.so"


@pytest.fixture(scope="module")
def checks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_checks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_good_wheels_have_no_fault(checks: ModuleType) -> None:
    assert checks.wheel_faults(PURE, {*WANTED, LICENCE}, WANTED) == []
    assert checks.wheel_faults(COMPILED, {*WANTED, LICENCE, BUILT, "abc__mypyc.so"}, WANTED) == []


@pytest.mark.parametrize(
    ("name", "more", "less", "said"),
    [
        (PURE, set(), {"lessor/py.typed"}, "lessor/py.typed is missing"),
        (PURE, {"tests/model.py"}, set(), "tests/model.py should not be there"),
        (PURE, {BUILT}, set(), f"{BUILT} is compiled"),
        (PURE, set(), {LICENCE}, "the licence is missing"),
        (COMPILED, set(), set(), "is for one machine, and not compiled"),
    ],
)
def test_a_bad_wheel_has_one(checks: ModuleType, name: str, more: set[str], less: set[str], said: str) -> None:
    assert checks.wheel_faults(name, (WANTED | {LICENCE} | more) - less, WANTED) == [f"{name}: {said}"]


def test_a_source_archive(checks: ModuleType) -> None:
    good = {*checks.IN_SOURCE, *(f"src/{file}" for file in WANTED)}
    assert checks.sdist_faults("s", good, WANTED) == []
    assert checks.sdist_faults("s", {*good, "build/x"} - {"LICENSE"}, WANTED) == [
        "s: LICENSE is missing",
        "s: build/x should not be there",
    ]


@pytest.mark.parametrize(
    ("changelog", "tags", "count"),
    [
        ("# C\n## Unreleased (1.0)\n", [], 0),
        ("# C\n## 1.0, 2026-12-01\n## 0.9\n", ["v1.0"], 0),
        ("# C\n## Unreleased (1.0)\n", ["v1.0"], 1),
        ("# C\n## 0.9\n## 1.0\n", [], 1),
        ("# C\n## 1.0\n", ["v0.9"], 1),
    ],
)
def test_the_version(checks: ModuleType, changelog: str, tags: list[str], count: int) -> None:
    assert len(checks.version_faults("1.0", changelog, tags)) == count


def test_this_version(checks: ModuleType) -> None:
    version = checks.version_of((SCRIPT.parents[1] / "src" / "lessor" / "__init__.py").read_text())
    assert checks.version_faults(version, (SCRIPT.parents[1] / "CHANGELOG.md").read_text(), []) == []
