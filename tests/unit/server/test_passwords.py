# SPDX-License-Identifier: Apache-2.0
"""Hashing beside the loop: it is not blocked, nobody who has gone is answered, and there is a limit."""

import asyncio
import threading
from typing import Any

import bcrypt
import pytest

from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.server.services.passwords import Job, Passwords


def never(error: Exception) -> None:
    raise AssertionError(error)


def test_a_hash_and_its_check() -> None:
    async def main() -> None:
        passwords = Passwords(4)
        hashed = await done(lambda then: passwords.hash("sésame\0", then, never))
        assert hashed.startswith(b"$2a$04$")
        assert bcrypt.checkpw("sésame\0".encode(), hashed)
        assert await done(lambda then: passwords.check("sésame\0", hashed, then, never))
        assert not await done(lambda then: passwords.check("sésame", hashed, then, never))
        assert not await done(lambda then: passwords.check("x", b"not a hash", then, never))
        assert not await done(lambda then: passwords.check("x", b"", then, never))
        assert not await done(lambda then: passwords.check("x", None, then, never))
        passwords.close()

    asyncio.run(main())


async def done(start: Any) -> Any:
    outcome = asyncio.get_running_loop().create_future()
    start(outcome.set_result)
    return await outcome


def test_only_the_first_72_bytes_count_in_a_check_and_more_are_refused_for_a_hash() -> None:
    async def main() -> None:
        passwords = Passwords(4)
        hashed = await done(lambda then: passwords.hash("x" * 72, then, never))
        assert await done(lambda then: passwords.check("x" * 80, hashed, then, never))
        with pytest.raises(EtcdError, match="bcrypt: password length exceeds 72 bytes"):
            passwords.hash("é" * 37, lambda hashed: None, never)
        passwords.close()

    asyncio.run(main())


def test_the_work_is_done_in_other_threads_and_answered_in_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def slow(raw: bytes, salt: bytes) -> bytes:
        threads.append(threading.current_thread().name)
        return b"hash"

    monkeypatch.setattr(bcrypt, "hashpw", slow)

    async def main() -> None:
        passwords = Passwords(4)
        answered_in = await done(
            lambda then: passwords.hash("x", lambda hashed: then(threading.current_thread().name), never)
        )
        assert answered_in == threading.main_thread().name
        assert threads[0].startswith("password")
        passwords.close()

    asyncio.run(main())


def test_who_has_gone_is_not_answered_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on = threading.Event()
    hashed: list[bytes] = []

    def waits(raw: bytes, salt: bytes) -> bytes:
        may_go_on.wait(10)
        hashed.append(raw)
        return raw

    monkeypatch.setattr(bcrypt, "hashpw", waits)
    monkeypatch.setattr(limits, "PASSWORDS_WAITING_MAX", 5)

    async def main() -> None:
        passwords = Passwords(4)
        answers: list[bytes] = []
        jobs: list[Job] = [passwords.hash(str(number), answers.append, never) for number in range(5)]
        with pytest.raises(EtcdError, match="too many requests"):
            passwords.hash("5", answers.append, never)
        jobs[0].on_gone()  # being hashed
        jobs[4].on_gone()  # still waiting
        may_go_on.set()
        while len(answers) < 3:
            await asyncio.sleep(0)
        await done(lambda then: passwords.hash("last", then, never))  # there is room again
        assert sorted(answers) == [b"1", b"2", b"3"]
        assert b"4" not in hashed
        passwords.close()

    asyncio.run(main())


def test_what_is_raised_in_place_of_a_result_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(raw: bytes, salt: bytes) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bcrypt, "hashpw", broken)

    async def main() -> None:
        passwords = Passwords(4)
        failures: list[Exception] = []
        passwords.hash("x", lambda hashed: None, failures.append)
        passwords.check("x", None, lambda right: None, failures.append)
        while len(failures) < 2:
            await asyncio.sleep(0)
        assert passwords.waiting == 0
        passwords.close()

    asyncio.run(main())
