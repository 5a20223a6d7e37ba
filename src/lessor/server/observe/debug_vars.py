# SPDX-License-Identifier: Apache-2.0
"""/debug/vars: the process and the state of its log, in the JSON of Go's expvar, for tools that read etcd's.

There is no raft: `raft.status` is the status of a member that leads alone, and its indexes count batches, as those of
Status do. There is no `memstats`, Go's figures about its memory.
"""

import json
import re
import resource
import sys

from lessor.server.observe.observed import Observed

# All that stands behind it: an address may have a password before its @, and among its parameters.
_ENGINE = re.compile(r"\b(postgres|postgresql|etcd|etcds)://.*", re.DOTALL)


def body(observed: Observed) -> bytes:
    identity = observed.machine.identity
    member = f"{identity.member_id:x}"
    durable = observed.gate.durable
    newest = max(observed.machine.journal.newest_with_rows, durable)  # a batch that saves the clock has no rows
    known = {
        "cmdline": [_ENGINE.sub(r"\1://***", argument) for argument in sys.argv],
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
