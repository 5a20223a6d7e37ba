# SPDX-License-Identifier: Apache-2.0
"""`lessor migrate`: a data directory out of a running etcd, which follows that etcd until you switch.

Laws
- The directory has its name only when it is whole: history and revisions as the etcd has them at one revision, the
  leases with the time that they had left when they were asked for, a moment later.
- The etcd is only read.
- Whatever could not be carried over is said, a line each.

Theory of operation. A snapshot is saved and restored beside the directory's place, and a watch over all keys goes on
from its revision. At the signal the newest revision is asked for, and waited for; then the leases are asked for, one by
one, and the directory gets its name. Where the etcd is written to meanwhile, that is done once more.
"""

import dataclasses
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lessor.base.revision import FIRST_REVISION, NOTHING_COMPACTED
from lessor.cli import printing
from lessor.cli.asking import ask
from lessor.cli.failure import BAD_ARGS, CTRL_C, ERROR, Failure
from lessor.cli.options import Command, settings_of
from lessor.cli.progress import progress
from lessor.cli.snapshot import about_etcd
from lessor.cli.watch import why_canceled

if TYPE_CHECKING:
    from lessor.client import AsyncClient
    from lessor.durable.etcd_copy import EtcdCopy, LiveLease
    from lessor.durable.etcd_snapshot import Restored
    from lessor.state.journal import AuthRows

REPORT_S: Final = 30.0
LOOK_S: Final = 0.02  # between two looks whether the newest revision has come
CATCH_UP_S: Final = 60.0  # without any change, after which it will not come
ROUNDS_MAX: Final = 5  # of asking for the leases of an etcd that is written to
AT_ONCE: Final = 100  # questions about leases under way
PART: Final = ".part"


@click.command("migrate", cls=Command)
@click.option("--from", "source", required=True, metavar="ENDPOINT", help="The etcd. --user, --cacert and so on too.")
@click.option("--data-dir", default="default.lessor", show_default=True, help="The directory to make; must not exist.")
@click.option("--once", is_flag=True, help="Do not follow: end when the copy is made.")
@click.pass_context
def migrate(ctx: click.Context, source: str, data_dir: str, once: bool) -> None:
    """Make a data directory out of a running etcd, and follow it until Ctrl-C or SIGTERM.

    Then stop its writers, end this command, and start Lessor on the directory.
    """
    from lessor.durable import directory
    from lessor.durable.engine import DataDirError, EngineError

    settings = dataclasses.replace(settings_of(ctx), endpoints=(source,))
    target = Path(data_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Failure(BAD_ARGS, f'data-dir "{target}" not empty or could not be read: name one that is not there')
    part = target.absolute().with_name(target.absolute().name + PART)
    try:
        with _cleared(part):
            lines = ask(settings, lambda client: _Migration(client, part, once).run())
            os.replace(part, target)
            directory.sync_directory(part.parent)
    except Failure as failure:
        raise Failure(failure.exit_code, failure.text.replace("--endpoints names", "--from names")) from None
    except (DataDirError, EngineError) as error:
        raise Failure(ERROR, str(error)) from None
    except OSError as error:
        raise Failure(ERROR, f"{error.filename or target}: {(error.strerror or str(error)).lower()}") from None
    _say(*lines, f"whole: serve it with --data-dir {data_dir}")


@contextmanager
def _cleared(part: Path) -> Iterator[None]:
    """Leaves nothing of that name behind, nor finds anything."""
    for left in (part, _file_of(part)):
        if left.exists():
            raise Failure(ERROR, f"{left}: of a migration that is under way, or was killed: delete it then")
    try:
        yield
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _file_of(part).unlink(missing_ok=True)


def _file_of(part: Path) -> Path:
    return part.with_name(part.name + ".db")


def _say(*lines: str) -> None:
    printing.write("".join(line + "\n" for line in lines).encode())


class _Migration:
    """One etcd and the directory that follows it."""

    def __init__(self, client: "AsyncClient", part: Path, once: bool) -> None:
        self._client = client
        self._part = part
        self._once = once
        self._auth_revision: int | None = None
        self._auth: AuthRows | None = None  # None: as when the copy began

    async def run(self) -> list[str]:
        """Returns what there is to say when the directory has its name."""
        from lessor.cli.tasks import first_of, signals, sleep
        from lessor.durable.etcd_copy import EtcdCopy

        with ExitStack() as open_:
            stop = open_.enter_context(signals(signal.SIGINT, signal.SIGTERM))
            # From the end on until the process is over: what is left is deleted, and a signal is not to break that off.
            open_.callback(signal.pthread_sigmask, signal.SIG_BLOCK, {signal.SIGTERM})
            interrupted = Failure(CTRL_C, "interrupted before the copy was made: nothing is left of it")

            async def stopped() -> None:
                await stop.wait()
                raise interrupted

            self._auth_revision = await self._revision_of_auth()
            await first_of(self._save(), stopped())
            restored = self._restore()
            await sleep(0)  # a signal that came meanwhile is seen now
            if stop.is_set():
                raise interrupted
            _say(*about_etcd(restored))
            copy = EtcdCopy(self._part, restored.revision)
            open_.callback(copy.close)
            if self._once:
                stop.set()
            else:
                _say("following: stop the writers of the etcd, then end this with Ctrl-C or SIGTERM")
            return await first_of(self._finish(copy, stop), self._follow(copy), self._report(copy))

    async def _save(self) -> None:
        with _file_of(self._part).open("xb") as file:
            os.chmod(file.fileno(), 0o600)  # values may be secrets
            async with aclosing(self._client.snapshot()) as replies:
                first = await anext(replies)
                with progress("saving", first.remaining_bytes + len(first.blob)) as done:
                    reply: Any = first
                    while reply is not None:
                        file.write(reply.blob)
                        done(len(reply.blob))
                        reply = await anext(replies, None)

    def _restore(self) -> "Restored":
        from lessor.durable import etcd_snapshot

        path = _file_of(self._part)
        if not etcd_snapshot.is_etcd(path):
            raise Failure(ERROR, "the server sends no file of etcd's: is it a Lessor? Use `lessor snapshot` for that")
        with progress("restoring", path.stat().st_size) as done:
            restored = etcd_snapshot.restore(path, self._part, progress=done)
        path.unlink()
        return restored

    # --- following --------------------------------------------------------------------------------------------------

    async def _follow(self, copy: "EtcdCopy") -> list[str]:
        """Takes in each change, for ever. Failure when the etcd ends the watch."""
        from lessor.client import FROM_KEY

        async for response in self._client.watch(b"\0", range_end=FROM_KEY, start_revision=copy.revision + 1):
            if response.canceled:
                raise Failure(ERROR, f"{why_canceled(response)}: run it again, and compact later")
            copy.apply(response.events)
        raise AssertionError("the watch has ended")

    async def _report(self, copy: "EtcdCopy") -> list[str]:
        from lessor.cli.tasks import sleep

        while True:
            await sleep(REPORT_S)
            _say(f"at revision {copy.revision}, changes since the copy: {copy.changes}")

    async def _finish(self, copy: "EtcdCopy", stop: Any) -> list[str]:
        await stop.wait()
        revision = await self._revision()
        for _ in range(ROUNDS_MAX):
            await self._reach(copy, revision)
            alarms = {alarm.alarm for alarm in (await self._client.maintenance.alarms()).alarms}
            compact_revision = await self._compact_revision(revision)
            await self._renew_auth()
            leases = await self._leases()
            before, revision = revision, await self._revision()
            moved_on = not before == revision == copy.revision
            if not moved_on:
                break
        copy.finish(leases, sorted(alarms), compact_revision, self._auth, moved_on=moved_on)
        lines = [f"copied: revision {copy.revision}, changes since the copy {copy.changes}, leases {len(leases)}"]
        if moved_on:
            lines.append(f"the etcd is still written to: what came after revision {copy.revision} is not here")
        return lines

    async def _renew_auth(self) -> None:
        """Users and roles, if they were changed. A watch does not tell of them; passwords are in a snapshot alone."""
        from lessor.durable import etcd_snapshot

        revision = await self._revision_of_auth()
        if self._once or (revision is not None and revision == self._auth_revision):
            return
        await self._save()
        path = _file_of(self._part)
        self._auth, self._auth_revision = etcd_snapshot.auth_of(path), revision
        path.unlink()

    async def _revision_of_auth(self) -> int | None:
        """None for an etcd before 3.5, which does not tell."""
        from lessor.base.errors import Code
        from lessor.client import ServerError

        try:
            return (await self._client.auth.status()).authRevision
        except ServerError as error:
            if error.code != Code.UNIMPLEMENTED:
                raise
            return None

    async def _revision(self) -> int:
        """The newest, as a majority of the etcd's members knows it."""
        return (await self._client.get(b"\0", count_only=True)).header.revision

    async def _reach(self, copy: "EtcdCopy", revision: int) -> None:
        from lessor.cli.tasks import now_s, sleep

        seen, since_s = copy.revision, now_s()
        while copy.revision < revision:
            await sleep(LOOK_S)
            if copy.revision != seen:
                seen, since_s = copy.revision, now_s()
            elif now_s() - since_s > CATCH_UP_S:
                raise Failure(
                    ERROR, f"the etcd sends nothing after revision {seen}, and is at {revision}: run it again"
                )

    async def _leases(self) -> "list[LiveLease]":
        """All that live, with the time that they have left: rounded up, so that none ends early."""
        from lessor.cli.tasks import crew
        from lessor.durable.etcd_copy import LiveLease

        ids = [lease.ID for lease in (await self._client.leases()).leases]
        found: list[LiveLease] = []

        async def look(id_: int) -> None:
            reply = await self._client.time_to_live(id_)
            if reply.TTL >= 0:
                found.append(LiveLease(id_, reply.grantedTTL, min(reply.TTL + 1, reply.grantedTTL)))

        with progress("leases", len(ids)) as done:
            for first in range(0, len(ids), AT_ONCE):
                async with crew() as start:
                    for id_ in ids[first : first + AT_ONCE]:
                        start(look(id_))
                done(len(ids[first : first + AT_ONCE]))
        return found

    async def _compact_revision(self, newest: int) -> int:
        """The oldest revision that can be read, by halving: no reply names it. -1 when nothing was compacted."""
        if await self._is_there(FIRST_REVISION):
            return NOTHING_COMPACTED
        gone, there = FIRST_REVISION, newest
        while there - gone > 1:
            middle = (gone + there) // 2
            if await self._is_there(middle):
                there = middle
            else:
                gone = middle
        return there

    async def _is_there(self, revision: int) -> bool:
        from lessor.base.errors import Code
        from lessor.client import ServerError

        try:
            await self._client.get(b"\0", count_only=True, revision=revision)
        except ServerError as error:
            if error.code != Code.OUT_OF_RANGE:
                raise
            return False
        return True
