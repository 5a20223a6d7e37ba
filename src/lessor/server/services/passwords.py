# SPDX-License-Identifier: Apache-2.0
"""Hashing and checking passwords with bcrypt, in threads of their own: a hash takes as long as thousands of grants.

Laws
- The loop never waits for a hash: bcrypt releases the interpreter's lock while it works.
- At most PASSWORDS_WAITING_MAX calls wait for a hash. More are refused.
- A result is delivered in the loop's thread, but not to a call that has ended. An exception, of the work or of `then`,
  goes to `failed`: no call waits for ever.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import bcrypt

from lessor.base import errors, limits
from lessor.server.observe.shortages import PASSWORDS, THREADS, Shortages

T = TypeVar("T")
Failed = Callable[[Exception], None]


class Job:
    """Work under way, which a unary call waits for (call.Waiting)."""

    open_ended = True

    __slots__ = ("_future", "_gone")

    def __init__(self, future: "Future[Any]") -> None:
        self._future: Future[Any] | None = future
        self._gone = False

    def on_gone(self) -> None:
        self._gone = True
        if self._future is not None:
            self._future.cancel()

    def over(self) -> None:
        """The work is done. The future's callback refers to this job: neither must keep the other alive."""
        self._future = None

    @property
    def gone(self) -> bool:
        return self._gone


class Passwords:
    """The threads and their work."""

    def __init__(self, cost: int, shortages: Shortages | None = None) -> None:
        """`cost`: bcrypt's, 4 to 31. Each step doubles the time."""
        self._shortages = shortages or Shortages()
        self._cost = cost
        self._threads = ThreadPoolExecutor(limits.HASH_THREADS, thread_name_prefix="password")
        self._waiting = 0

    def hash(self, password: str, then: Callable[[bytes], None], failed: Failed) -> Job:
        """Hashes a password; `then` gets the hash. Raises PASSWORD_TOO_LONG, TOO_MANY_REQUESTS."""
        raw = password.encode()
        if len(raw) > limits.PASSWORD_BYTES_MAX:
            raise errors.PASSWORD_TOO_LONG.error()
        return self._submit(lambda: self._hash(raw), then, failed)

    def check(self, password: str, hashed: bytes | None, then: Callable[[bool], None], failed: Failed) -> Job:
        """Checks a password; `then` gets the verdict. Raises TOO_MANY_REQUESTS.

        `hashed` None stands for a user who does not exist. The verdict is False, and takes as long as a check, so that
        the time does not reveal which users exist.
        """
        # bcrypt reads only the beginning of a longer password, in etcd too.
        raw = password.encode()[: limits.PASSWORD_BYTES_MAX]
        return self._submit(lambda: self._check(raw, hashed), then, failed)

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a result."""
        return self._waiting

    def close(self) -> None:
        """Ends the threads without waiting for them. Work that has not begun is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- in the threads ---

    def _hash(self, raw: bytes) -> bytes:
        return bcrypt.hashpw(raw, bcrypt.gensalt(self._cost, prefix=b"2a"))

    def _check(self, raw: bytes, hashed: bytes | None) -> bool:
        if hashed is None:
            self._hash(raw)
            return False
        try:
            return bcrypt.checkpw(raw, hashed)
        except ValueError:
            return False  # not a hash: a client may have sent anything as its hash

    # --- between threads and loop ---

    def _submit(self, work: Callable[[], T], then: Callable[[T], None], failed: Failed) -> Job:
        if self._waiting >= limits.PASSWORDS_WAITING_MAX:
            self._shortages.reached(PASSWORDS)
            raise errors.TOO_MANY_REQUESTS.error()
        loop = asyncio.get_running_loop()
        try:
            future = self._threads.submit(work)
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise  # the server has stopped
            self._shortages.reached(THREADS, error=str(error))
            raise errors.TOO_MANY_REQUESTS.error() from None
        self._waiting += 1
        job = Job(future)

        def deliver(finished: "Future[T]") -> None:
            self._waiting -= 1
            job.over()
            if not job.gone and not finished.cancelled():
                try:
                    then(finished.result())
                except Exception as error:
                    failed(error)

        def done(finished: "Future[T]") -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(deliver, finished)

        future.add_done_callback(done)
        return job
