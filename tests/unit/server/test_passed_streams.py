# SPDX-License-Identifier: Apache-2.0
"""Streaming calls that are passed on: what waits for the leader has a bound."""

from unittest.mock import Mock

import pytest

from lessor.base import limits
from lessor.base.errors import Code
from lessor.server.following.passing import PassedStream

FULL = [bytes(limits.PASSED_STREAM_BYTES_MAX), b"and one more"]


def ended_with(call: Mock) -> Code | None:
    return call.finish.call_args.args[0].code if call.finish.called else None


def test_before_there_is_a_link() -> None:
    call = Mock(forwarded=False)
    stream = PassedStream(Mock(), call)
    stream.on_messages(FULL[:1])
    stream.on_messages(FULL[1:])
    assert ended_with(call) is None
    stream.on_messages([b"too much"])
    assert ended_with(call) == Code.RESOURCE_EXHAUSTED
    assert stream._early == FULL


@pytest.mark.parametrize("queued_bytes", [limits.PASSED_STREAM_BYTES_MAX, limits.PASSED_STREAM_BYTES_MAX + 1])
def test_on_a_link_that_the_leader_does_not_read(queued_bytes: int) -> None:
    call, link = Mock(forwarded=False), Mock()
    on_link = link.start.return_value
    on_link.queued_bytes = 0
    stream = PassedStream(Mock(), call)
    stream.on_messages(FULL)
    stream.start(link)
    on_link.send.assert_called_once_with(FULL)
    on_link.queued_bytes = queued_bytes
    stream.on_messages([b"more"])
    too_much = queued_bytes > limits.PASSED_STREAM_BYTES_MAX
    assert on_link.send.call_count == (1 if too_much else 2)
    assert ended_with(call) == (Code.RESOURCE_EXHAUSTED if too_much else None)
