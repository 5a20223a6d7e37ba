# SPDX-License-Identifier: Apache-2.0
"""Hashing and checking passwords with bcrypt, in threads of their own: a hash takes as long as thousands of grants.

Laws
- The loop never waits for a hash: bcrypt releases the interpreter's lock while it works, and on Linux the loop's thread
  goes first where both want a core.
- At most PASSWORDS_WAITING_MAX calls wait for a hash. Beyond it the peer that crowds the queue most is refused, see
  loop/fair_queue.py. So a peer with few logins is served, however many others have pending.
- A job keeps the bytes that bcrypt reads, at most PASSWORD_BYTES_MAX of them, and nothing else of a request.
- A result is delivered in the loop's thread, but not to a call that has ended. An exception, of the work or of `then`,
  goes to `failed`: no call waits for ever.
- All verdicts about a password take as long as a hash, also those about no user and about no hash.

Theory of operation. Jobs wait in a fair queue in the loop. There are never more of them in the threads than threads, so
the order is decided as late as possible, and a job whose call has ended costs nothing.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import bcrypt

from lessor.base import errors, limits
from lessor.server.loop.fair_queue import FairQueue, Peer
from lessor.server.observe.shortages import PASSWORDS, THREADS, Shortages

Failed = Callable[[Exception], None]


class Job:
    """A hash to be made, which a unary call waits for (call.Waiting)."""

    open_ended = True

    __slots__ = ("_queue", "failed", "gone", "then", "work")

    def __init__(
        self, queue: "FairQueue[Job]", work: Callable[[], Any], then: Callable[[Any], None], failed: Failed
    ) -> None:
        self._queue = queue
        self.work = work
        self.then = then
        self.failed = failed
        self.gone = False

    def on_gone(self) -> None:
        self.gone = True
        self._queue.discard(self)


class Passwords:
    """The threads and their work."""

    def __init__(self, cost: int, shortages: Shortages | None = None) -> None:
        """`cost`: bcrypt's, 4 to 31. Each step doubles the time."""
        self._shortages = shortages or Shortages()
        self._cost = cost
        self._threads = ThreadPoolExecutor(limits.HASH_THREADS, "password", _step_back)
        self._queue: FairQueue[Job] = FairQueue()
        self._in_threads = 0

    def hash(self, password: str, peer: Peer, then: Callable[[bytes], None], failed: Failed) -> Job:
        """Hashes a password; `then` gets the hash. Raises PASSWORD_TOO_LONG, TOO_MANY_REQUESTS.

        `failed` gets TOO_MANY_REQUESTS when the job has to make room for another peer's. A retry is safe.
        """
        raw = _beginning(password)
        if len(raw) > limits.PASSWORD_BYTES_MAX:
            raise errors.PASSWORD_TOO_LONG.error()
        return self._begin(Job(self._queue, lambda: self._hash(raw), then, failed), peer)

    def check(
        self, password: str, hashed: bytes | None, peer: Peer, then: Callable[[bool], None], failed: Failed
    ) -> Job:
        """Checks a password; `then` gets the verdict. Raises TOO_MANY_REQUESTS, `failed` as in `hash`.

        `hashed` None stands for a user who does not exist. The verdict is False, and takes as long as a check, so that
        the time does not reveal which users exist.
        """
        # bcrypt reads only the beginning of a longer password, in etcd too.
        raw = _beginning(password)[: limits.PASSWORD_BYTES_MAX]
        return self._begin(Job(self._queue, lambda: self._check(raw, hashed), then, failed), peer)

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a result."""
        return len(self._queue) + self._in_threads

    def close(self) -> None:
        """Ends the threads without waiting for them. Work that has not begun is dropped."""
        self._queue = FairQueue()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- in the threads ---

    def _hash(self, raw: bytes) -> bytes:
        return bcrypt.hashpw(raw, bcrypt.gensalt(self._cost, prefix=b"2a"))

    def _check(self, raw: bytes, hashed: bytes | None) -> bool:
        if hashed is not None:
            try:
                return bcrypt.checkpw(raw, hashed)
            except ValueError:
                pass  # not a hash: a client may have sent anything as its hash
        self._hash(raw)
        return False

    # --- between threads and loop ---

    def _begin(self, job: Job, peer: Peer) -> Job:
        self._queue.add(job, peer)
        if self.waiting > limits.PASSWORDS_WAITING_MAX:
            self._shortages.reached(PASSWORDS)
            refused = self._queue.most_crowding(job)
            self._queue.discard(refused)
            if refused is job:
                raise errors.TOO_MANY_REQUESTS.error()
            refused.failed(errors.TOO_MANY_REQUESTS.error())
        self._feed()
        return job

    def _feed(self) -> None:
        """Gives the threads what they can work on now."""
        while self._queue and self._in_threads < limits.HASH_THREADS:
            job = self._queue.take()
            try:
                self._start(job)
            except RuntimeError as error:
                if "start new thread" not in str(error):
                    job.failed(error)  # the server stops
                    continue
                self._shortages.reached(THREADS, error=str(error))
                job.failed(errors.TOO_MANY_REQUESTS.error())

    def _start(self, job: Job) -> None:
        loop = asyncio.get_running_loop()

        def deliver(finished: "Future[Any]") -> None:
            self._in_threads -= 1
            self._feed()
            if not job.gone and not finished.cancelled():
                try:
                    job.then(finished.result())
                except Exception as error:
                    job.failed(error)

        def done(finished: "Future[Any]") -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(deliver, finished)

        future = self._threads.submit(job.work)
        self._in_threads += 1
        future.add_done_callback(done)


def _step_back() -> None:
    """Lets the loop's thread go first where both want a core. Only on Linux has each thread a value of its own."""
    if sys.platform == "linux":
        os.nice(limits.HASH_NICE)


def _beginning(password: str) -> bytes:
    """At least one byte more than bcrypt reads, if the password has as many."""
    return password[: limits.PASSWORD_BYTES_MAX + 1].encode()
