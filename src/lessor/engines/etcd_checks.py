# SPDX-License-Identifier: Apache-2.0
"""Whether an etcd can keep a log: what is looked at when a log is opened.

Laws
- What would lose records is refused, in one line that says what to set. What merely should be known is a warning.
- An etcd that does not answer, or has no majority, is no reason to refuse it: UnreachableError, wait.
- Nothing is written.

What no call of etcd's API shows, and is not looked at: whether it runs with --unsafe-no-fsync; how often its history is
compacted.
"""

import re
from collections.abc import Mapping
from typing import Final

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors
from lessor.base.limits import ENGINE_PIECE_BYTES, ENGINE_SLOW_CALL_S_MAX
from lessor.client import FROM_KEY, ClientError, Key, ServerError, op
from lessor.durable.shared_log import LogRefusedError, UnreachableError
from lessor.engines.etcd_keys import Keys
from lessor.engines.etcd_link import EtcdLink, one_line
from lessor.engines.etcd_url import ALWAYS, AUTO

OLDEST: Final = (3, 4)
DAMAGED: Final = ((3, 5, 0), (3, 5, 1), (3, 5, 2))  # a crash may leave their members with different data
FULL_FROM: Final = 0.8  # of the quota, from where on it is told
# Beside the piece: keys, and what the messages around it take.
_PROBE_BYTES: Final = ENGINE_PIECE_BYTES + 256


def look_over(link: EtcdLink, keys: Keys, *, local: bool) -> list[str]:
    """The warnings. Raises LogRefusedError, UnreachableError.

    `local`: the log is for a trial on one machine, and versions that are known to damage data are taken.
    """
    warnings: list[str] = []
    states = _states(link, warnings)
    ids = {state.header.cluster_id for state in states.values()}
    if len(ids) > 1:
        raise LogRefusedError(f"{', '.join(states)} are not of one etcd cluster: name the endpoints of one")
    link.etcd_id = ids.pop()
    for host, state in states.items():
        warnings += _of_member(host, state, local=local)
    warnings += _of_members(link)
    _probe(link, keys)
    if link.url.compact != ALWAYS and (link.url.compact != AUTO or not alone(link, keys)):
        warnings.append(
            "this log does not compact the etcd's history, because other keys are in it or compact=never: see that its"
            " operator does (--auto-compaction-mode=periodic --auto-compaction-retention=10m)"
        )
    return warnings


def alone(link: EtcdLink, keys: Keys) -> bool:
    """Whether nothing but this log is in the etcd; False also when we may not look."""
    try:
        reply = link.txn(
            (),
            [
                op.get(b"\0", range_end=keys.prefix, limit=1, keys_only=True),
                op.get(keys.end, range_end=FROM_KEY, limit=1, keys_only=True),
            ],
        )
    except ServerError as error:
        if error.message == errors.PERMISSION_DENIED.message:
            return False
        raise link.trouble(error, UnreachableError) from None
    except ClientError as error:
        raise link.trouble(error, UnreachableError) from None
    return not any(response.response_range.kvs for response in reply.responses)


def _states(link: EtcdLink, warnings: list[str]) -> Mapping[str, rpc.StatusResponse]:
    """What each endpoint that answers says of itself; at least one does."""
    states: dict[str, rpc.StatusResponse] = {}
    failures: list[str] = []
    for host in link.url.endpoints:
        client = link.dial([host])
        try:
            states[host] = link.run(client.maintenance.status())
        except ClientError as error:
            trouble = link.trouble(error, UnreachableError)
            if isinstance(trouble, LogRefusedError):
                raise trouble from None
            failures.append(one_line(error))
        finally:
            link.run(client.aclose())
    if not states:
        raise UnreachableError(f"no etcd answers: {'; '.join(failures)}")
    warnings += [f"an etcd does not answer: {failure}" for failure in failures]
    return states


def _of_member(host: str, state: rpc.StatusResponse, *, local: bool) -> list[str]:
    version = one_line(Exception(state.version))[:40]
    match = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", version)
    numbers = tuple(map(int, match.groups())) if match else ()
    if numbers[:1] != OLDEST[:1]:
        raise LogRefusedError(f"{host} is an etcd of version {version!r}, which Lessor does not know: use 3.6 or 3.7")
    if numbers < OLDEST:
        raise LogRefusedError(f"{host} is etcd {version}, which is too old: use 3.6 or 3.7")
    warnings = []
    if numbers in DAMAGED:
        text = f"{host} is etcd {version}, which may lose data in a crash (3.5.0 to 3.5.2 do)"
        if not local:
            raise LogRefusedError(f"{text}: use 3.5.3 or later, better 3.6 or 3.7")
        warnings.append(f"{text}: for trials only")
    if state.dbSizeQuota and state.dbSize > FULL_FROM * state.dbSizeQuota:
        warnings.append(
            f"{host} takes {state.dbSize} of {state.dbSizeQuota} bytes: compact and defragment it, or raise its"
            " --quota-backend-bytes"
        )
    return warnings


def _of_members(link: EtcdLink) -> list[str]:
    """A linearizable list of the members, which shows that they have a majority too."""
    try:
        members = link.run(link.client.cluster.member_list(timeout_s=ENGINE_SLOW_CALL_S_MAX)).members
    except ClientError as error:
        raise link.trouble(error, UnreachableError) from None
    voters = sum(not member.isLearner for member in members)
    named = len(link.url.endpoints)
    warnings = []
    if voters == 1:
        warnings.append("the etcd has one member: the log survives no loss of its machine")
    elif voters == 2:
        warnings.append("the etcd has two members: it stops when either is lost; use three")
    if named < voters:
        warnings.append(f"the engine names {named} of the etcd's {voters} members: name all of them")
    return warnings


def _probe(link: EtcdLink, keys: Keys) -> None:
    """A txn that reads, and would write if it could: rights, size, room, alarms and majority are those of an append.

    A txn is refused for what either branch may not do, and its size counts whichever is taken. So an alarm, NOSPACE or
    CORRUPT, refuses it too.
    """
    try:
        link.txn(
            [Key(keys.tail).version < 0],
            [op.put(keys.last, bytes(_PROBE_BYTES)), op.delete(keys.prefix, range_end=keys.last)],
            [op.get(keys.prefix, prefix=True, limit=1)],
        )
    except ClientError as error:
        raise link.trouble(error, UnreachableError) from None
