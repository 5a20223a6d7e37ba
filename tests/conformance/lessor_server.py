# SPDX-License-Identifier: Apache-2.0
"""Lessor as its users run it: `lessor serve` in a process and a data directory of its own.

with LessorServer() as server:
    ...  # server.client_url is "http://127.0.0.1:PORT"
"""

import contextlib
import itertools
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conformance.server_process import ServerProcess, hand_over, leads, logged_in
from tests.engine_flags import AT_FOLLOWERS, HAND_OVERS, engine_flags

HAND_OVER_S = 1.0  # between two of them
ROOT_PASSWORD = "root's"


class LessorServer(ServerProcess):
    """One Lessor process. `flags` are added to its command line. TTLs are clamped as etcd clamps them."""

    min_lease_ttl_s = 2

    def __init__(self, flags: Sequence[str] = ()) -> None:
        super().__init__(flags)
        self._companions = ExitStack()

    def __enter__(self) -> Self:
        if not (AT_FOLLOWERS or HAND_OVERS):
            return super().__enter__()
        self.folder = Path(tempfile.mkdtemp(prefix="conformance-"))
        try:
            companions = [Companion(self) for _ in range(2 if HAND_OVERS else 1)]
            for companion in companions:
                self._companions.enter_context(companion)
            self.start_again()
            if HAND_OVERS:
                urls = [companion.client_url for companion in companions]
                self._companions.enter_context(HandOvers([self.client_url, *urls]))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        super().stop()
        self._companions.close()

    @property
    def log_name(self) -> Path:
        """What the log in the engine is called after."""
        return self.data_dir

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "lessor",
            "serve",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.client_url}",
            f"--advertise-client-urls={self.client_url}",
            f"--min-lease-ttl={self.min_lease_ttl_s}",
            *engine_flags(self.log_name),
            *self.flags,
        ]


class Companion(LessorServer):
    """Another server on the log of the one under test. The first one leads when that starts."""

    def __init__(self, tested: LessorServer) -> None:
        super().__init__(tested.flags)
        self._log_name = tested.log_name
        self.min_lease_ttl_s = tested.min_lease_ttl_s

    @property
    def log_name(self) -> Path:
        return self._log_name

    def __enter__(self) -> Self:
        return ServerProcess.__enter__(self)


class HandOvers:
    """A thread that has the servers lead in turn. What fails is left out: a test may have stopped one of them."""

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hand-overs")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        made = 0
        for target in itertools.cycle(self._urls):
            if self._over.wait(HAND_OVER_S):
                break
            token = logged_in(target, "root", ROOT_PASSWORD)
            with contextlib.suppress(OSError):
                for url in self._urls:
                    if url != target and leads(url, token):
                        hand_over(url, target, token)
                        made += 1
        print(f"the lead was handed over {made} times", file=sys.stderr)
