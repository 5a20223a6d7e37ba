# SPDX-License-Identifier: Apache-2.0
"""Hashing beside the loop: it is not blocked, nobody who has gone is answered, and there is a limit."""

import asyncio
import os
import sys
import threading
from typing import Any

import bcrypt
import pytest

from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.server.loop.fair_queue import Peer
from lessor.server.services.passwords import Job, Passwords

ME = Peer("connection", "127.0.0.1", "me")


def never(error: Exception) -> None:
    raise AssertionError(error)


def test_a_hash_and_its_check() -> None:
    async def main() -> None:
        passwords = Passwords(4)
        hashed = await done(lambda then: passwords.hash("sésame\0", ME, then, never))
        assert hashed.startswith(b"$2a$04$")
        assert bcrypt.checkpw("sésame\0".encode(), hashed)
        assert await done(lambda then: passwords.check("sésame\0", hashed, ME, then, never))
        assert not await done(lambda then: passwords.check("sésame", hashed, ME, then, never))
        assert not await done(lambda then: passwords.check("x", b"not a hash", ME, then, never))
        assert not await done(lambda then: passwords.check("x", b"", ME, then, never))
        assert not await done(lambda then: passwords.check("x", None, ME, then, never))
        passwords.close()

    asyncio.run(main())


async def done(start: Any) -> Any:
    outcome = asyncio.get_running_loop().create_future()
    start(outcome.set_result)
    return await outcome


def test_only_the_first_72_bytes_count_in_a_check_and_more_are_refused_for_a_hash() -> None:
    async def main() -> None:
        passwords = Passwords(4)
        hashed = await done(lambda then: passwords.hash("x" * 72, ME, then, never))
        assert await done(lambda then: passwords.check("x" * 80, hashed, ME, then, never))
        with pytest.raises(EtcdError, match="bcrypt: password length exceeds 72 bytes"):
            passwords.hash("é" * 37, ME, lambda hashed: None, never)
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
            lambda then: passwords.hash("x", ME, lambda hashed: then(threading.current_thread().name), never)
        )
        assert answered_in == threading.main_thread().name
        assert threads[0].startswith("password")
        passwords.close()

    asyncio.run(main())


def held_hashes(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[bytes]]:
    """From now on a hash is the password itself, and waits for the event; the list has those that were made."""
    may_go_on = threading.Event()
    made: list[bytes] = []

    def waits(raw: bytes, salt: bytes) -> bytes:
        may_go_on.wait(10)
        made.append(raw)
        return raw

    monkeypatch.setattr(bcrypt, "hashpw", waits)
    return may_go_on, made


def test_who_has_gone_is_not_answered_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, hashed = held_hashes(monkeypatch)
    monkeypatch.setattr(limits, "PASSWORDS_WAITING_MAX", 5)

    async def main() -> None:
        passwords = Passwords(4)
        answers: list[bytes] = []
        jobs: list[Job] = [passwords.hash(str(number), ME, answers.append, never) for number in range(5)]
        with pytest.raises(EtcdError, match="too many requests"):
            passwords.hash("5", ME, answers.append, never)
        jobs[0].on_gone()  # being hashed
        jobs[4].on_gone()  # still waiting
        may_go_on.set()
        while len(answers) < 3:
            await asyncio.sleep(0)
        await done(lambda then: passwords.hash("last", ME, then, never))  # there is room again
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
        passwords.hash("x", ME, lambda hashed: None, failures.append)
        passwords.check("x", None, ME, lambda right: None, failures.append)
        while len(failures) < 2:
            await asyncio.sleep(0)
        assert passwords.waiting == 0
        passwords.close()

    asyncio.run(main())


def test_a_newcomer_is_served_soon_however_much_others_have_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four connections fill the queue with bad logins; whoever comes then gets in, and waits for a few hashes only."""
    may_go_on, worked = held_hashes(monkeypatch)

    async def main() -> None:
        passwords = Passwords(4)
        refused: list[Exception] = []
        answers: list[bool] = []
        for number in range(1_200):
            bad = Peer(f"connection {number % 4}", "10.0.0.1", f"user {number % 7}")
            try:
                passwords.check("bad", None, bad, answers.append, refused.append)
            except EtcdError as error:
                refused.append(error)
        assert (len(refused), passwords.waiting) == (200, limits.PASSWORDS_WAITING_MAX)
        for number in range(26):  # at the address of the others, and elsewhere
            honest = Peer(f"honest {number}", "10.0.0.1" if number % 2 else f"10.0.1.{number}", "ann")
            passwords.check("good", None, honest, answers.append, never)
        assert passwords.waiting == limits.PASSWORDS_WAITING_MAX
        assert len(refused) == 226
        may_go_on.set()
        while worked.count(b"good") < 26:
            await asyncio.sleep(0)
        assert len(worked) < 26 * 5
        passwords.close()

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no value of its own elsewhere")
def test_the_loop_goes_first_where_both_want_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    monkeypatch.setattr(bcrypt, "hashpw", lambda raw, salt: nice())

    async def main() -> None:
        passwords = Passwords(4)
        before = nice()
        in_thread = await done(lambda then: passwords.hash("x", ME, then, never))
        assert nice() == before
        assert in_thread == min(before + limits.HASH_NICE, 19)
        passwords.close()

    asyncio.run(main())


def test_no_verdict_is_had_without_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither about a user who does not exist nor about one whose hash is none: the time would tell them apart."""
    made: list[bytes] = []
    monkeypatch.setattr(bcrypt, "hashpw", lambda raw, salt: made.append(raw))

    async def main() -> None:
        passwords = Passwords(4)
        for hashed in (None, b"", b"not a hash"):
            assert not await done(lambda then, hashed=hashed: passwords.check("x", hashed, ME, then, never))
        assert made == [b"x"] * 3
        passwords.close()

    asyncio.run(main())
