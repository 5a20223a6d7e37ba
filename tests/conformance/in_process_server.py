# SPDX-License-Identifier: Apache-2.0
"""Lessor in the process of the tests, on a clock that flows like the real one and can be jumped."""

from collections.abc import Sequence
from typing import Self

from lessor.testing.server import InProcessServer
from lessor.testing.virtual_clock import VirtualClock
from tests.conformance.server_process import AnyServer


class InProcessLessor(AnyServer):
    """`flags` may be added to until the `with` block begins."""

    min_lease_ttl_s = 1

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self._server = InProcessServer(clock=VirtualClock(flowing=True))
        super().__init__(flags, self._server.client_url)

    def __enter__(self) -> Self:
        self._server.flags = self.flags
        self._server.__enter__()
        return self

    def stop(self) -> None:
        self._server.close()

    def request_stop(self) -> None:
        self._server.request_stop()

    def wait(self) -> int:
        self._server.wait()
        assert self._server.exit_code is not None
        return self._server.exit_code

    def start_again(self) -> None:
        self._server.start()

    def pass_time(self, seconds: float) -> None:
        self._server.clock.jump(seconds)

    def now_s(self) -> float:
        return self._server.clock.now_s()
