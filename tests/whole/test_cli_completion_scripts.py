# SPDX-License-Identifier: Apache-2.0
"""The scripts that `lessor completion` prints, as each shell is given them."""

import re
import subprocess

import pytest

from tests.whole.test_cli_beside_etcdctl import OURS


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_scripts(shell: str) -> None:
    script = subprocess.run([*OURS, "completion", shell], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"_LESSOR_COMPLETE ?= ?'?{shell}_complete", script)
    assert "%(" not in script
    if shell == "bash":
        loaded = subprocess.run(
            ["bash", "-c", f"{script}\ncomplete -p lessor"], capture_output=True, text=True, check=True
        )
        assert loaded.stdout.endswith(" lessor\n")
