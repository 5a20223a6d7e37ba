# SPDX-License-Identifier: Apache-2.0
"""Every command of etcdctl beside ours: the same line, to the same server, in each output format.

One table. Each row is run against Lessor in all its formats, and against a real etcd in the first two: the scene is
set, etcdctl runs, the scene is set again, our command runs in this process. Exit code, stdout and stderr must be the
same after `comparable`, which blanks the server's choices (ids, remaining seconds, sizes, durations) and counts
revisions from the scene. A test holds that no command of etcdctl is missing in the table.

The details of single commands, and where we differ on purpose: test_cli_*_beside_etcdctl.py.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import main
from lessor.client import AsyncClient, run
from tests.conformance.auth_peer import CHEAP
from tests.conformance.etcd_server import EtcdServer
from tests.conformance.etcdctl import etcdctl_like
from tests.conformance.lessor_server import LessorServer
from tests.conformance.server_process import ServerProcess
from tests.whole.test_cli_auth_beside_etcdctl import Users
from tests.whole.test_cli_beside_etcdctl import OURS, Outcome, Scene, errors, etcdctl_binary, until

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

EVERY = ("simple", "json", "fields", "table", "protobuf")
PLAIN = ("simple", "json")
ONE = ("simple",)


@dataclass(frozen=True)
class Row:
    """A line and how to compare it.

    reply    what the protobuf format prints; None: a sentence, or less than the reply (see `test_protobuf_of_leases`)
    since    the first etcdctl that prints so
    silent   only exit codes are compared: the text is each program's own
    reads    changes nothing: one scene does for all
    undo     a line of ours that brings the scene back
    """

    line: str
    formats: tuple[str, ...] = EVERY
    stdin: bytes = b""
    reply: type[Message] | None = None
    since: tuple[int, int] = (3, 5)
    silent: bool = False
    reads: bool = False
    undo: str = ""


TXN = b'mod("a") > "0"\nval("a") = "1"\n\nput a 2 --prev-kv\nget a\nget none\ndel a/1 --prev-kv\n\nput a 3\n\n'
ELSE = b'ver("a") = "0"\n\nput a 2\n\nget a --prefix --keys-only\ndel none\n\n'

TABLE = [
    Row("put a new --prev-kv", reply=rpc.PutResponse),
    Row("get a --prefix", reply=rpc.RangeResponse, reads=True),
    Row("get a", ("xml",), reads=True),
    Row("get none", reply=rpc.RangeResponse, reads=True),
    Row("get a --prefix --stream", reply=rpc.RangeResponse, since=(3, 7), reads=True),
    Row("get none --stream", reply=rpc.RangeResponse, since=(3, 7), reads=True),
    Row("get a z --limit 2 --keys-only --stream", PLAIN, since=(3, 7), reads=True),
    Row("get a --prefix --count-only --stream", ("fields",), since=(3, 7), reads=True),
    Row("get a --prefix --print-value-only --consistency s --stream", ONE, since=(3, 7), reads=True),
    Row("get a --prefix --rev 1000000 --stream", ONE, since=(3, 7), reads=True),
    Row("get a --prefix --order DESCEND --stream", ONE, since=(3, 7), reads=True),
    Row("get a --prefix --min-mod-rev 1 --stream", ONE, since=(3, 7), reads=True),
    Row("del a --prefix --prev-kv", reply=rpc.DeleteRangeResponse),
    Row("txn", stdin=TXN, reply=rpc.TxnResponse),
    Row("txn -i", PLAIN, ELSE),
    Row("txn --hex", ONE, TXN),
    Row("txn", ONE, b"\nput a 1\nput a 2\n\n\n"),
    Row("watch z a", PLAIN, reads=True),
    Row("watch -i", PLAIN, b"foo\nprogress\nwatch\n\nwatch a b --prefix\n"),
    Row("watch a --rev {base} --prefix -- false", ONE),
    Row("lease grant 61"),
    Row("lease revoke 4d2", EVERY[:4]),
    Row("lease timetolive 4d2 --keys", reads=True),
    Row("lease timetolive 77", reads=True),
    Row("lease list", reads=True),
    Row("lease keep-alive 4d2 --once"),
    Row("lock L -- sh -c true", PLAIN),
    Row("lock L -- sh -c exit\\ 7", PLAIN),
    Row("lock L no-such-program", ONE),
    Row("lock", ONE, reads=True),
    Row("elect", ONE),
    Row("elect e p q", ONE),
    Row("elect e", ONE),
    Row("elect e p -l", ONE),
    Row("make-mirror", ONE),
    Row("make-mirror x --dest-prefix y --no-dest-prefix", ONE),
    Row("make-mirror {address} --rev 99999999 --max-txn-ops x", ONE, silent=True),
    Row("check perf --load q", ONE),
    Row("check perf --prefix a", ONE),
    Row("check datascale --load q", ONE),
    Row("check datascale --prefix a", ONE),
    Row("compaction {base}"),
    Row("compaction 99999999", ONE),
    Row("compaction {base} --physical", ONE),
    Row("defrag", (*PLAIN, "fields", "table", "protobuf"), since=(3, 6)),
    Row("defrag --cluster", ONE, since=(3, 6)),
    Row("endpoint status", since=(3, 6), reads=True),
    Row("endpoint health", (*PLAIN, "fields"), reads=True),
    Row("endpoint hashkv", since=(3, 6), reads=True),
    Row("endpoint status --cluster", ONE, since=(3, 6)),
    Row("member list", reply=rpc.MemberListResponse, reads=True, since=(3, 6)),
    Row("member list --hex", PLAIN, reads=True, since=(3, 6)),
    Row("member list --consistency s", ONE, since=(3, 6)),
    Row("member update {me} --peer-urls={urls}", PLAIN, reply=rpc.MemberUpdateResponse),
    Row("member remove 99", PLAIN, reads=True),
    Row("member promote 99", PLAIN, reads=True),
    Row("member add", ONE),
    Row("member add x", ONE),
    Row("move-leader {me}", PLAIN, since=(3, 6)),
    Row("move-leader 99", ONE, since=(3, 6)),
    Row("alarm list", reply=rpc.AlarmResponse, reads=True),
    Row("alarm disarm", PLAIN),
    Row("downgrade validate 9.9", ONE, reads=True, since=(3, 6)),
    Row("downgrade validate", ONE, since=(3, 6)),
    Row("downgrade enable", ONE, since=(3, 6)),
    Row("downgrade cancel", PLAIN, since=(3, 6)),
    Row("snapshot save {tmp}/saved", ONE, since=(3, 6)),
    Row("snapshot save", ONE, since=(3, 6)),
    Row("auth status", PLAIN, reply=rpc.AuthStatusResponse, reads=True),
    Row("auth disable", PLAIN),
    Row("auth enable", PLAIN, undo="auth disable --user root:rootpw"),
    Row("user add bob:pw", reply=rpc.AuthUserAddResponse),
    Row("user get ann", reply=rpc.AuthUserGetResponse, reads=True),
    Row("user get ann --detail", ONE),
    Row("user list", reply=rpc.AuthUserListResponse, reads=True),
    Row("user passwd ann --interactive=false", stdin=b"new\n", reply=rpc.AuthUserChangePasswordResponse),
    Row("user delete ann", reply=rpc.AuthUserDeleteResponse),
    Row("user grant-role ann empty", reply=rpc.AuthUserGrantRoleResponse),
    Row("user revoke-role ann r", reply=rpc.AuthUserRevokeRoleResponse),
    Row("role add new", reply=rpc.AuthRoleAddResponse),
    Row("role get r", reply=rpc.AuthRoleGetResponse, reads=True),
    Row("role list", reply=rpc.AuthRoleListResponse, reads=True),
    Row("role delete r", reply=rpc.AuthRoleDeleteResponse),
    Row("role grant-permission empty read k", reply=rpc.AuthRoleGrantPermissionResponse),
    Row("role revoke-permission r a b", reply=rpc.AuthRoleRevokePermissionResponse),
    Row("version", ONE, silent=True, reads=True),
    Row("completion bash", ONE, silent=True, reads=True, since=(3, 6)),
    Row("completion zsh", ONE, silent=True, reads=True, since=(3, 6)),
    Row("completion fish", ONE, silent=True, reads=True, since=(3, 6)),
    Row("completion powershell", ONE, silent=True, reads=True, since=(3, 6)),
    Row("completion", ONE, silent=True, reads=True),
    Row("help lease grant", ONE, silent=True, reads=True),
]
# Those that go on until Ctrl-C, with the last line that they print before it. Their exit codes after it are the same
# where the command ends by itself then; etcdctl's watch is killed by the signal, ours tells the shell so.
ENDLESS = {
    "watch a --prefix --rev {base}": rb'a/3\n\n$|"Created":false(,"CancelReason":"")?}\n',
    "lease keep-alive 4d2": rb"TTL\(1000\)\n|\"TTL\":1000}\n",
    "lock L": rb"L/[0-9a-f]+\n\n|}\n",
    "elect e p": rb"\np\n|}\n",
    "elect a -l": rb"\nx\n|}\n",
}
ENDS_WELL = ("lock", "elect")


class Pair:
    """One server, and both programs."""

    def __init__(self, server: ServerProcess, etcdctl: Path, tmp: Path) -> None:
        self.keys = Scene(server, etcdctl)
        self.users = Users(server, etcdctl)
        self.tmp = tmp
        self.version = self.keys.etcdctl_version
        self._member = run(self._ask_member())

    async def _ask_member(self) -> rpc.Member:
        async with AsyncClient(self.keys.server.address) as client:
            reply = await client.call("/etcdserverpb.Cluster/MemberList", rpc.MemberListRequest())
            member: rpc.Member = reply.members[0]  # type: ignore[attr-defined]
            return member

    def scene(self, line: str) -> Scene:
        return self.users if line.startswith(("auth", "user", "role")) else self.keys

    def args(self, line: str) -> list[str]:
        known = {"me": f"{self._member.ID:x}", "urls": ",".join(self._member.peerURLs), "tmp": self.tmp}
        text = line.format(base=self.scene(line).base, address=self.keys.server.address, **known)
        return [word.replace("\0", " ") for word in text.replace("\\ ", "\0").split(" ")]

    def etcdctls(self, row: Row, output_format: str) -> Outcome:
        scene = self.scene(row.line)
        command = [str(scene.etcdctl), "-w", output_format, *self.args(row.line)]
        done = subprocess.run(command, input=row.stdin, capture_output=True, env=scene.environment(), timeout=30)
        return (
            done.returncode,
            self.comparable(row, done.stdout, output_format),
            self.comparable(row, errors(done.stderr), ""),
        )

    def ours(self, row: Row, output_format: str, capture: pytest.CaptureFixture[bytes]) -> Outcome:
        capture.readouterr()
        exit_code = main.run(["-w", output_format, *self.args(row.line)])
        said = capture.readouterr()
        printed = self.keys.spelt(self.comparable(row, said.out, output_format))
        return exit_code, printed, self.comparable(row, said.err, "")

    def comparable(self, row: Row, output: bytes, output_format: str) -> str:
        """What a program said, with what differs from run to run taken out."""
        if output_format == "protobuf":
            # Of a reply that etcdctl prints in part, or whose text is a sentence, only the exit code counts.
            output = str(row.reply.FromString(output)).encode() if row.reply and output else b""
        text = self.scene(row.line).comparable(output)
        text = re.sub(
            r"\brevision: (\d+)", lambda found: f"revision: {int(found[1]) - self.scene(row.line).base}", text
        )
        text = re.sub(r"(?<!\d)\d+(\.\d+)?(ms|µs|s)\b", "T", text)
        text = re.sub(r"(?<=, )[\d.]+ [kMG]?B(?=, )|(?<=[|│] )( *)[\d.]+ [kMG]?B(?= [|│])", "SIZE", text)
        text = re.sub(r"\b\d+%", "P%", text)
        text = re.sub(r'("(?:dbSize|dbSizeInUse|raftIndex|raftAppliedIndex|hash|hash_revision)"):\d+', r"\1:N", text)
        text = re.sub(r'("(?:DBSize|DBSizeInUse|RaftIndex|RaftAppliedIndex|Hash|HashRevision)") : \d+', r"\1 : N", text)
        text = re.sub(r'("AuthRevision"|authRevision"|AuthRevision|auth_revision)( ?:? ?)\d+', r"\1\2N", text)
        return re.sub(r"(compacted revision |\b(?:mod_|create_)?revision: |, |[|│] +)\d+\b", r"\1N", text)


@pytest.fixture(scope="module", params=["lessor", "etcd"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    etcdctl = etcdctl_binary()
    server = LessorServer(CHEAP) if request.param == "lessor" else EtcdServer(flags=CHEAP)
    with server:
        yield Pair(server, etcdctl, tmp_path_factory.mktemp("cli"))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.line)
def test_same_as_etcdctl(
    pair: Pair, row: Row, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if pair.version < row.since:
        pytest.skip(f"etcdctl is older than {row.since}")
    for name in [name for name in os.environ if name.startswith("ETCDCTL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", pair.keys.server.address)
    stdin = tmp_path / "stdin"
    stdin.write_bytes(row.stdin)
    scene = pair.scene(row.line)
    scene.set()
    for output_format in row.formats if isinstance(scene.server, LessorServer) else row.formats[:2]:
        if not row.reads:
            scene.set()
        theirs = pair.etcdctls(row, output_format)
        if row.undo:
            assert main.run(pair.args(row.undo)) == 0
        if not row.reads:
            scene.set()
        with stdin.open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            ours = pair.ours(row, output_format, capfdbinary)
        if row.undo:
            assert main.run(pair.args(row.undo)) == 0
        if row.silent:
            ours, theirs = (ours[0], "", ""), (theirs[0], "", "")
        assert (output_format, *ours) == (output_format, *theirs)


@pytest.mark.parametrize("output_format", PLAIN)
@pytest.mark.parametrize("line", ENDLESS)
def test_same_until_ctrl_c(pair: Pair, line: str, output_format: str) -> None:
    printed = []
    for command in ([str(pair.keys.etcdctl)], OURS):
        pair.keys.set()
        output, code = until(
            [*command, "-w", output_format, *pair.args(line)], re.compile(ENDLESS[line]), pair.keys.environment()
        )
        text = re.sub(r"(?<=[Le]/)[0-9a-f]+", "ID", pair.keys.comparable(output))
        text = re.sub(r'"key":"[^"]*"|"lease":\d+|,"count":1', "", text)
        if command == OURS:
            text = pair.keys.spelt(text)
        printed.append((text, code if line.startswith(ENDS_WELL) else 0))
    assert printed[1] == printed[0]
    assert printed[1][1] == 0


def helped(line: str) -> str:
    return printed_by(f"{line} --help")


def printed_by(line: str) -> str:
    return subprocess.run([etcdctl_binary(), *line.split()], capture_output=True, text=True).stdout


def commands() -> list[str]:
    """Every command of etcdctl that does something by itself."""
    if etcdctl_like(3, 7):  # which lists one level at a time
        names = commands_below("")
    else:
        listed = helped("").partition("COMMANDS:\n")[2].partition("\nOPTIONS:")[0]
        names = [line.strip().split("\t")[0] for line in listed.splitlines() if line.strip()]
    assert len(names) > 40
    return names


def commands_below(name: str) -> list[str]:
    sections = re.findall(r"^(?:Available Commands:|[A-Z].* commands)\n((?:  .+\n)+)", helped(name), re.MULTILINE)
    words = [line.split()[0] for section in sections for line in section.splitlines()]
    return [leaf for word in words for leaf in commands_below(f"{name} {word}".strip())] if words else [name]


def flags(name: str) -> list[tuple[str, str, bool]]:
    """The flags in a command's help, of all commands for "": the short form, the name, whether it takes no value."""
    if not etcdctl_like(3, 7):
        found = re.findall(r"^ +(?:(-\w), )?--([\w-]+)(\[?)=.*\t", helped(name), re.MULTILINE)
        return [(short, flag, bool(bracket)) for short, flag, bracket in found]
    listed = helped(name) if name else printed_by("options")
    found = re.findall(r"^ +(?:(-\w), )?--([\w-]+)( \w+)?   ", listed, re.MULTILINE)
    return [(short, flag, not kind) for short, flag, kind in found]


def test_no_command_of_etcdctl_is_missing() -> None:
    # 3.5 still has the offline commands of snapshot; since 3.6 they are etcdutl's, and ours are as those.
    elsewhere = {"snapshot restore", "snapshot status"}
    # Shows the flags of all commands, which up to 3.6 are in the help of each command, and so are ours.
    newer = ["options"] if etcdctl_like(3, 7) else []
    here = [f"{row.line} " for row in TABLE]
    assert [
        name
        for name in commands()
        if name not in elsewhere and not any(f"{name} " == line[: len(name) + 1] for line in here)
    ] == newer


def test_no_flag_of_etcdctl_is_missing() -> None:
    """Each has the same short form, and takes a value or none as etcdctl's does."""
    # What a server without peers has no use for; and etcdctl 3.5's way to an etcd's files.
    elsewhere = {
        *(("snapshot restore", name) for name in ("name", "wal-dir", "initial-cluster", "initial-cluster-token")),
        *(("snapshot restore", "initial-advertise-peer-urls"), ("defrag", "data-dir")),
    }
    newer = {("", "auth-jwt-token"), ("get", "stream")} if etcdctl_like(3, 7) else set()
    missing = set()
    for name in ["", *commands()]:
        if name == "options":  # a command of 3.7 without flags
            continue
        command: click.Command | None = main.cli
        for word in name.split():
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word)
        assert command is not None
        ours = {}
        for option in command.get_params(click.Context(command, **command.context_settings)):
            short = next((flag for flag in option.opts if len(flag) == 2), "")
            ours.update(dict.fromkeys(option.opts, (short, isinstance(option, click.Option) and option.is_flag)))
        for short, flag, alone in flags(name):
            if ours.get(f"--{flag}") != (short, alone):
                missing.add((name, flag))
    assert missing - elsewhere == newer
