# SPDX-License-Identifier: Apache-2.0
"""The command lines that are compared with etcdctl's, and the scene that each of them meets.

`LINES` has a line for each command and flag: test_cli_every_command.py enumerates our own command tree and finds none
missing. Each line is run in all five output formats. What etcdctl 3.7 says to each is in tests/data, see
etcdctl_says.py.
"""

import itertools
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import AsyncClient, run
from tests.conformance.server_process import ServerProcess
from tests.whole.test_cli_auth_beside_etcdctl import Users
from tests.whole.test_cli_beside_etcdctl import Outcome, Scene, errors

# Runs a command line: its exit code, stdout and stderr.
Speaker = Callable[[list[str], bytes], tuple[int, bytes, bytes]]
FORMATS = ("simple", "json", "fields", "table", "protobuf")


@dataclass(frozen=True)
class Line:
    """A line and how to compare it.

    reply    what the protobuf format prints; without it only whether it prints anything is compared
    before   a line that is run first; after   one that brings the scene back
    own      the text is each program's own: only whether it succeeds is compared
    reads    changes nothing: one scene does for all
    only     the kind of server that is asked, if not both
    """

    text: str
    stdin: bytes = b""
    reply: type[Message] | None = None
    before: str = ""
    after: str = ""
    own: bool = False
    reads: bool = False
    only: str = ""


TXN = b'mod("a") > "0"\nval("a") = "1"\n\nput a 2 --prev-kv\nget a\nget none\ndel a/1 --prev-kv\n\nput a 3\n\n'
ELSE = b'ver("a") = "0"\n\nput a 2\n\nget a --prefix --keys-only\ndel none\n\n'
# etcd numbers members by URL and second, and does not take a number back.
LEARNER = "member add x --peer-urls=http://192.0.2.1:{port} --learner"

KEYS = [
    Line("put new v --prev-kv", reply=rpc.PutResponse),
    Line("put a v --prev-kv", reply=rpc.PutResponse),
    Line("put leased v --ignore-lease", reply=rpc.PutResponse),
    Line("put leased --ignore-value", reply=rpc.PutResponse),
    Line("put b v --lease 4d2", reply=rpc.PutResponse),
    Line("put b v --lease 77"),
    Line("put a", b"piped\n", reply=rpc.PutResponse),
    Line("get a", reply=rpc.RangeResponse, reads=True),
    Line("get a --prefix", reply=rpc.RangeResponse, reads=True),
    Line("get odd --prefix --hex", reply=rpc.RangeResponse, reads=True),
    Line("get leased --hex", reply=rpc.RangeResponse, reads=True),
    Line("get none", reply=rpc.RangeResponse, reads=True),
    Line("get a --prefix --stream", reply=rpc.RangeResponse, reads=True),
    Line("get none --stream", reply=rpc.RangeResponse, reads=True),
    Line("get a z --limit 2 --keys-only --stream", reply=rpc.RangeResponse, reads=True),
    Line("get a z --limit 2 --keys-only", reply=rpc.RangeResponse, reads=True),
    Line("get a --prefix --count-only", reply=rpc.RangeResponse, reads=True),
    Line("get a --prefix --count-only --stream", reply=rpc.RangeResponse, reads=True),
    Line("get a --prefix --print-value-only", reads=True),
    Line("get a --prefix --print-value-only --consistency s --stream", reads=True),
    Line("get a --from-key --consistency s", reply=rpc.RangeResponse, reads=True),
    Line("get a --prefix --rev {base}", reply=rpc.RangeResponse, reads=True),
    Line("get a --prefix --rev 1000000 --stream", reads=True),
    Line("get a --prefix --rev 1000000", reads=True),
    Line("get a --prefix --order DESCEND --sort-by MODIFY", reply=rpc.RangeResponse, reads=True),
    Line("get a --prefix --order DESCEND --stream", reads=True),
    Line("get a --prefix --min-mod-rev 1 --max-mod-rev {base}", reply=rpc.RangeResponse, reads=True),
    Line("get a --prefix --min-create-rev 1 --max-create-rev {base}", reply=rpc.RangeResponse, reads=True),
    Line("get a --prefix --min-mod-rev 1 --stream", reads=True),
    Line("del a", reply=rpc.DeleteRangeResponse),
    Line("del a --prefix --prev-kv", reply=rpc.DeleteRangeResponse),
    Line("del a/1 a/3 --range", reply=rpc.DeleteRangeResponse),
    Line("del z --from-key", reply=rpc.DeleteRangeResponse),
    Line("txn", TXN, reply=rpc.TxnResponse),
    Line("txn -i", ELSE),
    Line("txn --interactive", b"\nput a 1\nput a 2\n\n\n"),
    Line("txn --hex", TXN, reply=rpc.TxnResponse),
    Line("watch z a", reads=True),
    Line("watch -i", b"foo\nprogress\nwatch\n\nwatch a b --prefix\n"),
    Line("watch a --rev {base} --prefix --prev-kv --progress-notify -- false"),
    Line("watch a --rev {before}", before="compaction {base}"),
    Line("lease grant 61"),
    Line("lease grant 61 --hex"),
    Line("lease revoke 4d2"),
    Line("lease revoke 77"),
    Line("lease timetolive 4d2", reads=True),
    Line("lease timetolive 4d2 --keys", reads=True),
    Line("lease timetolive 77", reads=True),
    Line("lease list", reads=True),
    Line("lease list --hex", reads=True),
    Line("lease keep-alive 4d2 --once"),
    Line("lease keep-alive 77 --once"),
    Line("lock L --ttl 5 -- sh -c true"),
    Line("lock L -- sh -c exit\\ 7"),
    Line("lock L no-such-program"),
    Line("lock"),
    Line("elect"),
    Line("elect e p q"),
    Line("elect e"),
    Line("elect e p -l"),
    Line("elect e p --listen"),
]
SERVERS = [
    Line("make-mirror"),
    Line("make-mirror x --prefix a --dest-prefix y --no-dest-prefix --max-txn-ops 5 --rev 1"),
    Line("make-mirror {address} --rev 99999999 --max-txn-ops x", own=True),
    Line("make-mirror {address} --dest-user u --dest-password p --max-txn-ops x", own=True),
    Line("make-mirror x --dest-cacert a --dest-cert b --dest-key c --dest-insecure-transport --rev x", own=True),
    Line("check perf --load q"),
    Line("check perf --prefix a"),
    Line("check perf --load q --auto-compact --auto-defrag"),
    Line("check datascale --load q"),
    Line("check datascale --prefix a --auto-compact --auto-defrag"),
    Line("compaction {base}"),
    Line("compaction {base} --physical"),
    Line("compaction 99999999"),
    Line("defrag"),
    Line("defrag --cluster"),
    Line("endpoint status", reads=True),
    Line("endpoint status --hex", reads=True),
    Line("endpoint status --cluster"),
    Line("endpoint health", reads=True),
    Line("endpoint health --cluster"),
    Line("endpoint hashkv", reads=True),
    Line("endpoint hashkv --cluster --rev {base}"),
    Line("endpoint hashkv --rev 99999999"),
    Line("member list", reply=rpc.MemberListResponse, reads=True),
    Line("member list --hex", reply=rpc.MemberListResponse, reads=True),
    Line("member list --consistency s", reply=rpc.MemberListResponse, reads=True),
    Line("member list --consistency x"),
    Line("member update {me} --peer-urls={urls}", reply=rpc.MemberUpdateResponse),
    Line("member update {me} --peer-urls={urls} --hex", reply=rpc.MemberUpdateResponse),
    Line("member update {me}"),
    Line("member remove 99", reads=True),
    Line("member promote 99", reads=True),
    Line("member add"),
    Line("member add x"),
    Line(LEARNER, reply=rpc.MemberAddResponse, only="etcd", after="member remove {x}"),
    Line(LEARNER + " --hex", reply=rpc.MemberAddResponse, only="etcd", after="member remove {x}"),
    Line("member remove {x}", before=LEARNER, reply=rpc.MemberRemoveResponse, only="etcd"),
    Line("member promote {x}", before=LEARNER, after="member remove {x}", only="etcd"),
    Line("move-leader {me}"),
    Line("move-leader 99"),
    Line("alarm list", reply=rpc.AlarmResponse, reads=True),
    Line("alarm disarm"),
    Line("downgrade validate 3.6", reply=rpc.DowngradeResponse),
    Line("downgrade validate 9.9"),
    Line("downgrade validate"),
    Line("downgrade enable 3.6", reply=rpc.DowngradeResponse, after="downgrade cancel"),
    Line("downgrade enable 9.9"),
    Line("downgrade enable"),
    Line("downgrade cancel", before="downgrade enable 3.6", reply=rpc.DowngradeResponse),
    Line("snapshot save {tmp}/saved"),
    Line("snapshot save"),
    Line("auth status", reply=rpc.AuthStatusResponse, reads=True),
    Line("auth enable", after="auth disable --user root:rootpw"),
    Line("auth disable"),
    Line("user add bob:pw", reply=rpc.AuthUserAddResponse),
    Line("user add bob --new-user-password pw", reply=rpc.AuthUserAddResponse),
    Line("user add bob --no-password", reply=rpc.AuthUserAddResponse),
    Line("user add bob --interactive=false", b"pw\n", reply=rpc.AuthUserAddResponse),
    Line("user get ann", reply=rpc.AuthUserGetResponse, reads=True),
    Line("user get ann --detail", reads=True),
    Line("user get ann --detail --hex", reads=True),
    Line("user get nobody --detail", reads=True),
    Line("user get nobody", reads=True),
    Line("user list", reply=rpc.AuthUserListResponse, reads=True),
    Line("user passwd ann --interactive=false", b"new\n", reply=rpc.AuthUserChangePasswordResponse),
    Line("user delete ann", reply=rpc.AuthUserDeleteResponse),
    Line("user grant-role ann empty", reply=rpc.AuthUserGrantRoleResponse),
    Line("user revoke-role ann r", reply=rpc.AuthUserRevokeRoleResponse),
    Line("role add new", reply=rpc.AuthRoleAddResponse),
    Line("role get r", reply=rpc.AuthRoleGetResponse, reads=True),
    Line("role get empty", reply=rpc.AuthRoleGetResponse, reads=True),
    Line("role list", reply=rpc.AuthRoleListResponse, reads=True),
    Line("role delete r", reply=rpc.AuthRoleDeleteResponse),
    Line("role grant-permission empty read k", reply=rpc.AuthRoleGrantPermissionResponse),
    Line("role grant-permission empty write k --prefix", reply=rpc.AuthRoleGrantPermissionResponse),
    Line("role grant-permission empty readwrite k --from-key", reply=rpc.AuthRoleGrantPermissionResponse),
    Line("role revoke-permission r a b", reply=rpc.AuthRoleRevokePermissionResponse),
    Line("role revoke-permission r e --from-key", reply=rpc.AuthRoleRevokePermissionResponse),
    Line("role revoke-permission r a --prefix", reply=rpc.AuthRoleRevokePermissionResponse),
    Line("version", own=True, reads=True),
    *(Line(f"completion {shell}", own=True, reads=True) for shell in ("bash", "zsh", "fish", "powershell")),
    Line("completion", own=True, reads=True),
    Line("help lease grant", own=True, reads=True),
    Line("options", own=True, reads=True),
    Line("lease", own=True, reads=True),
]
EVERYWHERE = [
    Line("get a --endpoints {address} --dial-timeout 1s --command-timeout 4s", reply=rpc.RangeResponse, reads=True),
    Line("get a --keepalive-time 20s --keepalive-timeout 5s", reply=rpc.RangeResponse, reads=True),
    Line("get a --max-recv-bytes 10 --max-request-bytes 100", reads=True),
    Line("get a --max-recv-bytes 10 --max-request-bytes 9", reads=True),
    Line("put a 0123456789 --max-request-bytes 5"),
    Line("get a --insecure-transport --insecure-discovery", reads=True, reply=rpc.RangeResponse),
    Line("get a --insecure-skip-tls-verify --command-timeout 100ms", own=True, reads=True),
    Line("get a --cacert /nowhere --endpoints https://{address}", own=True, reads=True),
    Line("get a --cert /nowhere --key /nowhere --endpoints https://{address}", own=True, reads=True),
    Line("get a --user ann:annpw", reads=True, reply=rpc.RangeResponse),
    Line("get a --user ann --password annpw", reads=True, reply=rpc.RangeResponse),
    Line("get a --auth-jwt-token t", reads=True, reply=rpc.RangeResponse),
    Line("get a --auth-jwt-token t --user ann:annpw", reads=True),
    Line("get a --discovery-srv nowhere.invalid --discovery-srv-name n", own=True, reads=True),
    Line("get a --debug", own=True, reads=True),
]
# Those that go on until Ctrl-C, with the last line that they print before it.
ENDLESS = {
    "watch a --prefix --rev {base}": rb'a/3\n\n$|"Created":false(,"CancelReason":"")?}\n|"Key" : "a/3"\n(.*\n){5}',
    "lease keep-alive 4d2": rb"TTL\(1000\)\n|\"TTL\" ?: ?1000}?\n",
    "lock L": rb"L/[0-9a-f]+\n\n|}\n|\"Lease\" : .*\n",
    "elect e p": rb"\np\n|}\n|\"Lease\" : .*\n",
    "elect a -l": rb"\nx\n|}\n|\"Lease\" : .*\n",
}
LINES = [*KEYS, *SERVERS, *EVERYWHERE]


class Meeting:
    """One server, and whoever speaks a line to it."""

    def __init__(self, server: ServerProcess, kind: str, etcdctl: Path | None, tmp: Path) -> None:
        self.kind = kind
        self._keys = Scene(server, etcdctl)
        self._users = Users(server, etcdctl)
        self._tmp = tmp
        self._ports = itertools.count(1)
        self._member = run(self._members())[0]
        header = run(self._header())
        self._names = [
            (re.compile(rf"(?<![0-9a-zA-Z]){name} *(?![0-9a-zA-Z])"), general)
            for name, general in (
                (f" *{self._member.ID:x}|{self._member.ID}", " MEMBER"),
                (f" *{header.cluster_id:x}|{header.cluster_id}", " CLUSTER"),
                (re.escape(",".join(self._member.clientURLs)), " URL"),
                (re.escape(",".join(self._member.peerURLs)), " URL"),
                (re.escape(server.address), "ADDRESS"),
            )
        ]

    async def _members(self) -> "list[rpc.Member]":
        async with AsyncClient(self._keys.server.address) as client:
            reply = await client.call("/etcdserverpb.Cluster/MemberList", rpc.MemberListRequest())
            return list(reply.members)  # type: ignore[attr-defined]

    async def _header(self) -> rpc.ResponseHeader:
        async with AsyncClient(self._keys.server.address) as client:
            return (await client.get("a")).header

    def scene(self, line: Line) -> Scene:
        return self._users if line.text.startswith(("auth", "user", "role")) else self._keys

    def args(self, line: Line, text: str) -> list[str]:
        known = {"me": f"{self._member.ID:x}", "urls": ",".join(self._member.peerURLs), "tmp": self._tmp}
        if "{x}" in text:
            others = [f"{member.ID:x}" for member in run(self._members()) if member.ID != self._member.ID]
            known["x"] = others[0] if others else "none"
        if "{port}" in text:
            known["port"] = next(self._ports)
        scene = self.scene(line)
        filled = text.format(base=scene.base, before=scene.base - 1, address=scene.server.address, **known)
        return [word.replace("\0", " ") for word in filled.replace("\\ ", "\0").split(" ")]

    def outcome(self, line: Line, output_format: str, speak: Speaker) -> Outcome:
        """What comes of a line; the scene has been set before it."""
        if line.before:
            speak(self.args(line, line.before), b"")
        try:
            code, out, err = speak(["-w", output_format, *self.args(line, line.text)], line.stdin)
            if line.own:
                return int(code != 0), "", ""
            return code, self.comparable(line, out, output_format), self.comparable(line, errors(err), "")
        finally:
            if line.after:
                speak(self.args(line, line.after), b"")

    def outcomes(self, line: Line, speak: Speaker) -> dict[str, Outcome]:
        """What comes of a line in each format; the scene is set for it."""
        outcomes: dict[str, Outcome] = {}
        for output_format in FORMATS:
            if not outcomes or not line.reads:
                self.scene(line).set()
            outcomes[output_format] = self.outcome(line, output_format, speak)
        return outcomes

    def environment(self) -> dict[str, str]:
        return self._keys.environment()

    def etcdctl(self, args: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        command = [str(self._keys.etcdctl), *args]
        done = subprocess.run(command, input=stdin, capture_output=True, env=self.environment(), timeout=60)
        return done.returncode, done.stdout, done.stderr

    def comparable(self, line: Line, output: bytes, output_format: str) -> str:
        """What a program said, with what differs from run to run and from server to server taken out."""
        if output_format == "protobuf" and output:
            output = str(line.reply.FromString(output)).encode() if line.reply else b"(bytes)"
        scene = self.scene(line)
        text = scene.comparable(output).replace(str(self._tmp), "TMP")
        text = re.sub(r"(?<!auth_revision: )(?<=revision: )(\d+)", lambda found: str(int(found[1]) - scene.base), text)
        text = re.sub(r"revision (\d+)", lambda found: f"revision {int(found[1]) - scene.base}", text)
        for pattern, general in (*self._names, *_BLANKED):
            text = pattern.sub(general, text)
        return text


# What a server chooses or measures. Of a table only the cells count: columns are as wide as what was blanked.
_BLANKED = [
    (re.compile(pattern, re.MULTILINE), general)
    for pattern, general in (
        (r"(?<![\dA-Z])\d+(\.\d+)?(ms|µs|s)\b", "T"),
        (r"\b[\d.]+ [kMG]?B\b", "SIZE"),
        (r"\b\d+%", "PERCENT"),
        # A new member's number is drawn, and a list of members is ordered by them.
        (r'(?<="members":).*(?=})|^members \{\n(?:  .*\n)*\}\n|(?<=ETCD_INITIAL_CLUSTER=).*', "MEMBERS"),
        (r"(?<=192\.0\.2\.1:)\d+", "PORT"),
        (r"(?<=[Mm]ember )[ 0-9a-f]{16}|(?<=ID: )\d{15,}|(?<=\"ID\":)\"?[0-9a-f]{15,}\"?", "ID"),
        (
            r'("(?:dbSize|dbSizeInUse|raftIndex|raftAppliedIndex|raft_term|raftTerm|hash|hash_revision|compact_revision)"):\d+',
            r"\1:N",
        ),
        (r'("(?:DBSize|DBSizeInUse|RaftIndex|RaftAppliedIndex|RaftTerm|Hash|HashRevision)") : \d+', r"\1 : N"),
        (r"(raft_term: )\d+", r"\1N"),
        (r'("?[aA]uth_?[rR]evision"? ?: ?)\d+', r"\1N"),
        (r'("AuthRevision"|authRevision"|AuthRevision|auth_revision)( ?:? ?)\d+', r"\1\2N"),
        (r"([,│] +)\d+(?=[, ]|$)", r"\1N"),
        (r"\b3\.7\.\d+\b", "VERSION"),
        (r"(?<=│) +| +(?=│)", ""),
        (r"─+", "─"),
        (r"(?<=larger than max \()\d+", "N"),
        (r"\(&\{.*\}\)", "(a reply)"),
    )
]
