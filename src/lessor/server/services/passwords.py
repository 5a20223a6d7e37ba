# SPDX-License-Identifier: Apache-2.0
"""Hashing and checking passwords with bcrypt, in threads of their own: a hash takes as long as thousands of grants.

Laws
- The loop never waits for a hash; bcrypt gives up the interpreter while it works.
- No more than PASSWORDS_WAITING_MAX calls wait for one; more are refused.
- A result is delivered in the loop's thread, and not at all to a call that has gone. What is raised in its place, by
  the work or by who takes its result, goes to `failed`: nobody waits for ever.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import bcrypt

from lessor.base import errors, limits

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
        """The work is done. It knows whom to tell, and so us: neither is to keep the other."""
        self._future = None

    @property
    def gone(self) -> bool:
        return self._gone


class Passwords:
    """The threads, and what they do."""

    def __init__(self, cost: int) -> None:
        """`cost`: of bcrypt, 4 to 31; each step doubles the time."""
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

        `hashed` None stands for a user who does not exist: the answer is no, and takes as long as a check, so that it
        does not give away who exists.
        """
        # Of a longer password bcrypt sees the beginning only, also in etcd.
        raw = password.encode()[: limits.PASSWORD_BYTES_MAX]
        return self._submit(lambda: self._check(raw, hashed), then, failed)

    @property
    def waiting(self) -> int:
        """How many calls wait for a result."""
        return self._waiting

    def close(self) -> None:
        """Lets go of the threads; what waits is dropped."""
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
            return False  # not a hash: clients may send hashes of their own

    # --- between threads and loop ---

    def _submit(self, work: Callable[[], T], then: Callable[[T], None], failed: Failed) -> Job:
        if self._waiting >= limits.PASSWORDS_WAITING_MAX:
            raise errors.TOO_MANY_REQUESTS.error()
        self._waiting += 1
        loop = asyncio.get_running_loop()
        future = self._threads.submit(work)
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
