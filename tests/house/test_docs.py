# SPDX-License-Identifier: Apache-2.0
"""Holds the documents to the tree: what they name exists.

Laws: every file, folder and test that the pages in the root and in docs/ name between backticks is there, and every
link to a file leads somewhere.
"""

import re
from pathlib import Path

import pytest

from lessor.base import limits

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# What can stand before a path in the documents: the tour names modules without src/lessor.
ROOTS = (ROOT, ROOT / "src" / "lessor")
TOP = {path.name for root in ROOTS for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))}


def named(text: str) -> list[str]:
    """The paths, with `::test` where one follows, that stand between backticks."""
    spans = re.findall(r"`([\w./*-]+(?:::\w+)?)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [span for span in spans if "/" in span and span.split("/")[0] in TOP]


def missing(name: str) -> bool:
    path, _, test = name.partition("::")
    found = [file for root in ROOTS for file in root.glob(path)]
    return not found or (test != "" and not any(f"def {test}(" in file.read_text() for file in found))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_exists(document: Path) -> None:
    assert [name for name in named(document.read_text()) if missing(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_limits_that_a_document_names_exist() -> None:
    """In docs/security.md, whose tables stand on them: one that is renamed or dropped must not stay behind there."""
    named_limits = re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`", (ROOT / "docs" / "security.md").read_text())
    assert len(named_limits) > 20
    assert [name for name in named_limits if not hasattr(limits, name)] == []


def test_the_search_finds_what_is_missing() -> None:
    assert named("see `tests/house/test_docs.py::test_links_lead_somewhere`, `server/main.py` and `a/b`") == [
        "tests/house/test_docs.py::test_links_lead_somewhere",
        "server/main.py",
    ]
    assert not missing("tests/house/test_docs.py::test_links_lead_somewhere")
    assert missing("tests/house/test_docs.py::test_that_nobody_wrote")
    assert missing("server/never.py")
    assert not missing("api/proto/*.proto")
