# SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/ui.md can be taken, and are there."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.pictures import FOLDER, take
from tests.conformance.lessor_server import LessorServer

pytestmark = pytest.mark.slow


def test_the_pictures_of_the_document_are_those_that_are_taken(
    browser: Any, server: LessorServer, tmp_path: Path
) -> None:
    named = re.findall(r"\(ui/([\w-]+\.png)\)", (FOLDER.parent / "ui.md").read_text())
    take(browser, server.client_url, tmp_path, patience=0.03)
    assert (
        sorted(named)
        == sorted(file.name for file in tmp_path.iterdir())
        == sorted(file.name for file in FOLDER.iterdir())
    )
