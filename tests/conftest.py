# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests.

Laws
- The tests and the processes that they start are interrupted by SIGINT, however the test run was started.
- A test that changes the process for good fails, and the tests after it find the process as it was. The settings that
  are compared are those of `lessor serve`: the handlers of SIGINT and SIGTERM, whether the collector runs, and the
  interval at which threads take turns.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable, Generator
from typing import Any

import pytest

# Of each setting: how it is read, and how it is set again.
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "SIGINT": (lambda: signal.getsignal(signal.SIGINT), lambda handler: signal.signal(signal.SIGINT, handler)),
    "SIGTERM": (lambda: signal.getsignal(signal.SIGTERM), lambda handler: signal.signal(signal.SIGTERM, handler)),
    "collector": (gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
    "switch interval": (sys.getswitchinterval, sys.setswitchinterval),
}

# A shell starts a background job with SIGINT ignored, and a child process inherits that. Tests interrupt servers,
# clients and themselves as Ctrl-C does, so they need the default again.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# grpcio, our tests' client, gives up a child process that is forked while its threads run; those of ours that fork use
# no gRPC in the child. It reads this when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    before = {name: read() for name, (read, _) in SETTINGS.items()}
    try:
        yield
    finally:
        after = {name: read() for name, (read, _) in SETTINGS.items()}
        for name, value in before.items():
            if after[name] != value:
                SETTINGS[name][1](value)
    assert after == before, "the test leaves the process changed"
