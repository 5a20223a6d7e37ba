# SPDX-License-Identifier: Apache-2.0
"""What docs/guide.md, guide.zh.md and client.md show, done in order at a fresh `lessor serve`: commands, and Python.

Laws
- Each command prints what the page shows. Only what no two runs share may differ: the ids of the server, how much time
  is left, measured times. A lease's id may differ too, but it is the same lease wherever the page shows the same id.
- A command whose output ends with ^C is interrupted after as many lines as the page shows. A line that begins with `# `
  restarts the server when it says so (重启), and otherwise, that the command behind it runs in another terminal: beside
  what follows, and what it prints is compared at the end of the page.

`play` finds out what is printed, `Ids.same` compares. The Go program is not run here: it needs Go and its modules.
"""

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest

from tests.certificates import Authority
from tests.conformance.etcdctl import etcdctl_binary
from tests.conformance.lessor_server import LessorServer

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUN_S_MAX = 60.0
INTERRUPT = "^C"
LEASE_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])|(?<!\d)\d{13,20}(?!\d)")
DIFFERING = re.compile(
    r'(?<=cluster_id":)"?\d+|(?<=member_id":)"?\d+|(?<=remaining\()\d+|"TTL":"\d+",(?="gr)|\d+\.\d{3}\b'
    r'|(?<=remaining_ms":)"\d+|(?<=s) +\d+\.\ds(?= )'
)


class Step(NamedTuple):
    kind: str  # "command", "beside", "restart" or "python"
    text: str
    shown: str


def steps(page: str) -> Iterator[Step]:
    """What the page does, in order. The output of a block of Python stands in a block of text right behind it."""
    for kind, block, printed in re.findall(r"```(console|python)\n(.*?)```(?:\n\n```text\n(.*?)```)?", page, re.DOTALL):
        if kind == "python":
            yield Step("python", block, printed.strip())
            continue
        kind = "command"
        for first, output in re.findall(r"^([$#] .*)\n((?:(?![$#] ).*\n)*)", block, re.MULTILINE):
            if first.startswith("# "):
                if "重启" in first:
                    yield Step("restart", first, "")
                else:
                    assert re.search("another terminal|另一个终端", first)
                    kind = "beside"
            else:
                yield Step(kind, first[2:], output.strip())
                kind = "command"


class Ids:
    """Which lease of this run stands for which of the page: both its spellings, hexadecimal and decimal."""

    def __init__(self) -> None:
        self._here: dict[str, str] = {}

    def translate(self, text: str) -> str:
        """What the page says, with the ids of this run."""
        return LEASE_ID.sub(lambda found: self._here.get(found[0], found[0]), text)

    def same(self, shown: str, printed: str) -> bool:
        """Whether this is the output that the page shows. Learns the ids that come up for the first time."""
        shown, printed = (DIFFERING.sub("N", text) for text in (shown, printed))
        for there, here in zip(LEASE_ID.findall(shown), LEASE_ID.findall(printed), strict=False):
            base = 16 if len(there) == 16 else 10
            for spell in ("{:016x}", "{}"):
                self._here.setdefault(spell.format(int(there, base)), spell.format(int(here, base)))
        return self.translate(shown) == printed


class Reader:
    """Somebody who follows the page at a server of their own."""

    def __init__(self, server: LessorServer, bin_folder: Path) -> None:
        self._server = server
        self._python: dict[str, Any] = {}
        known = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
        path = f"{bin_folder}:{known['PATH']}"
        self._beside: list[tuple[Step, subprocess.Popen[str]]] = []
        self._environment = known | {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": server.address, "PATH": path}

    def play(self, step: Step) -> str:
        """Does as the page says; returns what is printed."""
        text = step.text.replace("localhost:2379", self._server.address).replace("127.0.0.1:2379", self._server.address)
        if step.kind == "restart":
            self._server.restart(signal.SIGINT)
            return ""
        if step.kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(text, self._python)
            return output.getvalue().strip()
        if step.kind == "beside":
            self._beside.append((step, self._start(f"exec {text}")))
            while not self._begun(len(self._beside)):
                time.sleep(0.01)
            return step.shown  # the end will tell
        lines = step.shown.count("\n") if step.shown.endswith(INTERRUPT) else None
        return self._command(text, lines)

    def _start(self, text: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["sh", "-c", text], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self._environment,
        )  # fmt: skip

    def _command(self, text: str, lines: int | None) -> str:
        process = self._start(f"exec {text}" if lines else text)
        if lines is not None:
            return self._interrupted(process, lines)
        with process:
            try:
                output = process.communicate(timeout=RUN_S_MAX)[0].strip()
                return output.replace(self._server.address, "127.0.0.1:2379")
            finally:
                process.kill()

    def _interrupted(self, process: "subprocess.Popen[str]", lines: int) -> str:
        """The first lines, and Ctrl-C."""
        with process:
            try:
                assert process.stdout is not None
                output = "".join(process.stdout.readline() for _ in range(lines))
                process.send_signal(signal.SIGINT)
                return output + INTERRUPT
            finally:
                process.kill()

    def _begun(self, watches: int) -> bool:
        """Whether the server has sent `created` to so many watches of leases."""
        with urlopen(f"http://{self._server.address}/metrics") as metrics:
            sent = re.search(
                r'msg_sent_total\{.*"Watch",grpc_service="lessorpb.Leases".*\} (\d+)', metrics.read().decode()
            )
        return sent is not None and int(sent[1]) >= watches

    def beside(self) -> Iterator[tuple[Step, str]]:
        """What ran in other terminals, and what it printed."""
        for step, process in self._beside:
            yield step, self._interrupted(process, step.shown.count("\n"))
        self._beside.clear()

    def leave(self) -> None:
        for _, process in self._beside:
            with process:
                process.kill()
        if "client" in self._python:
            self._python["client"].close()


@contextlib.contextmanager
def reader(folder: Path) -> Iterator[Reader]:
    """With etcdctl and `lessor` on the path, whether or not this tree is installed."""
    (folder / "etcdctl").symlink_to(etcdctl_binary())
    (folder / "lessor").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m lessor "$@"\n')
    (folder / "lessor").chmod(0o755)
    with LessorServer(["--min-lease-ttl=1"]) as server:
        reader = Reader(server, folder)
        try:
            yield reader
        finally:
            reader.leave()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "commands", "programs"), [("guide.md", 42, 0), ("guide.zh.md", 43, 8), ("client.md", 0, 8)]
)
def test_what_the_page_shows_is_what_comes_out(
    name: str, commands: int, programs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = list(steps((DOCS / name).read_text()))
    found = [step.kind for step in plan]
    assert (found.count("command"), found.count("python")) == (commands, programs)
    certificates = Authority("ca")
    certificates.write(tmp_path / "ca.pem")
    certificates.issue(tmp_path, "me")
    monkeypatch.chdir(tmp_path)
    ids = Ids()
    with reader(tmp_path) as somebody:
        for step in plan:
            printed = somebody.play(step._replace(text=ids.translate(step.text)))
            if step.kind != "beside":
                assert ids.same(step.shown, printed), f"{step.text}\n{printed}\n-- but the page says --\n{step.shown}"
        for step, printed in somebody.beside():
            assert ids.same(step.shown, printed), f"{step.text}\n{printed}\n-- but the page says --\n{step.shown}"


def test_an_id_stands_for_one_lease_in_both_spellings() -> None:
    ids = Ids()
    assert ids.same("lease 7d0000000000aa01 granted", "lease 010203040506070a granted")
    assert ids.translate(f"0d{0x7D0000000000AA01} 0x7d0000000000aa01") == f"0d{0x010203040506070A} 0x010203040506070a"
    assert ids.same("lease 7d0000000000aa01, remaining(9s)", "lease 010203040506070a, remaining(7s)")
    assert not ids.same("lease 7d0000000000aa01", "lease 010203040506070b")
    assert not ids.same("granted with TTL(300s)", "granted with TTL(30s)")
    assert not ids.same("lease 7d0000000000aa02", "")
