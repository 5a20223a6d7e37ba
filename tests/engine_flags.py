# SPDX-License-Identifier: Apache-2.0
"""Has the servers of the tests keep their data in a shared log, when the environment names one.

LESSOR_TEST_ENGINE is the URL of an --engine, with {} where each server needs a name of its own, as in
etcd://127.0.0.1:2379/{} or postgres://127.0.0.1/postgres?schema={}.
"""

import hashlib
import os
from pathlib import Path

ENGINE = os.environ.get("LESSOR_TEST_ENGINE", "")
# With ENGINE: whether the servers under test follow another one, of which the tests do not know.
AT_FOLLOWERS = bool(os.environ.get("LESSOR_TEST_FOLLOWERS"))
# With ENGINE: whether they are one of three, of which the tests do not know, and the lead goes round each second.
HAND_OVERS = bool(os.environ.get("LESSOR_TEST_HAND_OVERS"))


def engine_flags(data_dir: Path) -> list[str]:
    """The flags for a server on this data directory: always the same ones."""
    name = hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    return [f"--engine={ENGINE.format(f't{name}')}", "--engine-may-lose-commits"] if ENGINE else []
