# SPDX-License-Identifier: Apache-2.0
"""The streaming calls of the gateway over a WebSocket: Lessor and a real etcd."""

import json

import pytest
from wsproto import events

from tests.conformance.subject import Subject, new_lease_id
from tests.conformance.websocket_peer import WebSocketPeer


def test_keepalive(subject: Subject) -> None:
    lease_id = subject.grant(100)
    with WebSocketPeer(subject.server.address, "/v3/lease/keepalive") as peer:
        assert isinstance(peer.opened, events.AcceptConnection)
        peer.send(f'{{"ID":"{lease_id}"}}')
        reply = peer.result()
        assert (reply["ID"], reply["TTL"]) == (str(lease_id), "100")
        gone = new_lease_id()
        peer.send(f'{{"ID":"{gone}"}}', f'{{"ID":"{lease_id}"}}')
        assert "TTL" not in peer.result()
        assert peer.result()["ID"] == str(lease_id)


def test_a_message_may_hold_several_requests_or_a_part_of_one(subject: Subject) -> None:
    with WebSocketPeer(subject.server.address, "/v3/lease/keepalive") as peer:
        peer.send('{"ID":"7"}{"ID":"8"}', '{"ID":', '"9"}')
        assert [peer.result()["ID"] for _ in range(3)] == ["7", "8", "9"]
        peer.event(events.BytesMessage(data=b'{"ID":"10"}'))
        assert peer.result()["ID"] == "10"


def test_watch(subject: Subject, prefix: bytes) -> None:
    key = prefix.decode()
    with WebSocketPeer(subject.server.address, "/v3/watch") as peer:
        peer.send(json.dumps({"createRequest": {"key": _b64(key)}}))
        assert peer.result()["created"] is True
        revision = subject.put(prefix, b"v")
        (event,) = peer.result()["events"]
        assert (event["kv"]["key"], event["kv"]["mod_revision"]) == (_b64(key), str(revision))
        subject.delete(prefix)
        (event,) = peer.result()["events"]
        assert event["type"] == "DELETE"


def _b64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()


def test_pings_are_answered(subject: Subject) -> None:
    with WebSocketPeer(subject.server.address, "/v3/watch") as peer:
        peer.event(events.Ping(payload=b"there?"))
        assert peer.read() == events.Pong(payload=b"there?")


def test_a_goodbye_is_answered_and_ends_the_connection(subject: Subject) -> None:
    with WebSocketPeer(subject.server.address, "/v3/lease/keepalive") as peer:
        peer.send('{"ID":"7"}')
        assert peer.result()["ID"] == "7"
        peer.event(events.CloseConnection(code=1000))
        goodbye = peer.read()
        assert isinstance(goodbye, events.CloseConnection)
        assert goodbye.code == 1000
        assert peer.read() is None


def test_a_malformed_request_ends_the_call(subject: Subject) -> None:
    with WebSocketPeer(subject.server.address, "/v3/lease/keepalive") as peer:
        peer.send('{"ID":"x"}')
        last = peer.read()
        if subject.is_lessor:
            assert json.loads(last.data)["error"]["code"] == 3
            last = peer.read()
            assert last.code == 1007
            last = peer.read()
        elif not subject.like(3, 6):
            assert json.loads(last.data)["code"] == 2
            last = peer.read()
        assert last is None  # 3.6 goes without a word


def test_a_token_may_come_as_a_subprotocol(subject: Subject) -> None:
    with WebSocketPeer(subject.server.address, "/v3/watch", ["Bearer", "QEeaTIfXTbQcSJnx.163"]) as peer:
        assert isinstance(peer.opened, events.AcceptConnection)
        assert peer.opened.subprotocol == "Bearer"


def test_lessor_ends_a_websocket_when_its_stream_ends(subject: Subject) -> None:
    if not subject.is_lessor:
        pytest.skip("etcd answers a call with one request when the peer has said goodbye, and so never")
    with WebSocketPeer(subject.server.address, "/v3/maintenance/snapshot") as peer:
        peer.send("{}")
        results = []
        while isinstance(event := peer.read(), events.TextMessage):
            if event.message_finished:
                results.append(event.data)
        assert results
        assert event.code == 1000


def test_other_paths_are_no_websockets(subject: Subject) -> None:
    # etcd opens one for any path below /v3, and says what is wrong in it; the pages are no websockets there either.
    paths = {"/health": 200, "/v3/kv/range": 501, "/v3/nope": 404} if subject.is_lessor else {"/health": 200}
    for path, status in paths.items():
        with WebSocketPeer(subject.server.address, path) as peer:
            assert isinstance(peer.opened, events.RejectConnection)
            assert peer.opened.status_code == status
