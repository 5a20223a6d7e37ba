# SPDX-License-Identifier: Apache-2.0
"""/debug/vars: what the process is and how its log stands, in the JSON of Go's expvar, for tools that look at etcd's.

There is no raft: `raft.status` is that of a member that leads alone, and its indexes count batches, as Status does.
What Go tells of its own memory (`memstats`) has no counterpart.
"""

import json
import resource
import sys

from lessor.server.observe.observed import Observed


def body(observed: Observed) -> bytes:
    identity = observed.machine.identity
    member = f"{identity.member_id:x}"
    newest, durable = observed.machine.journal.newest_with_rows, observed.gate.durable
    known = {
        "cmdline": sys.argv,
        "file_descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "raft.status": {
            "id": member,
            "term": identity.term,
            "vote": member,
            "commit": durable,
            "lead": member,
            "raftState": "StateLeader",
            "applied": durable,
            "progress": {member: {"match": durable, "next": newest + 1, "state": "StateReplicate"}},
            "leadtransferee": "0",
        },
    }
    return (
        "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in known.items())
    ).encode() + b"\n}\n"
