# SPDX-License-Identifier: Apache-2.0
"""How endpoints are written."""

import pytest

from lessor.client import InvalidEndpoint, parse_endpoint, parse_endpoints, prefix_end


@pytest.mark.parametrize(
    ("text", "host", "port", "path", "tls", "authority"),
    [
        ("10.0.0.1:2379", "10.0.0.1", 2379, "", False, "10.0.0.1:2379"),
        (" etcd.example:1 ", "etcd.example", 1, "", False, "etcd.example:1"),
        ("localhost", "localhost", 2379, "", False, "localhost:2379"),
        ("http://h:80", "h", 80, "", False, "h:80"),
        ("http://h:80/", "h", 80, "", False, "h:80"),
        ("https://h", "h", 2379, "", True, "h:2379"),
        ("[::1]:5", "::1", 5, "", False, "[::1]:5"),
        ("http://[fe80::1]", "fe80::1", 2379, "", False, "[fe80::1]:2379"),
        ("unix:///run/lessor.sock", "", 0, "/run/lessor.sock", False, "localhost"),
        ("unix:run.sock", "", 0, "run.sock", False, "localhost"),
        ("unixs:///run/lessor.sock", "", 0, "/run/lessor.sock", True, "localhost"),
        ("unixs:run.sock", "", 0, "run.sock", True, "localhost"),
    ],
)
def test_an_endpoint_is_read(text: str, host: str, port: int, path: str, tls: bool, authority: str) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.host, endpoint.port, endpoint.path, endpoint.tls) == (host, port, path, tls)
    assert endpoint.authority == authority
    assert endpoint.text == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://",
        "ftp://h:1",
        "h:port",
        "h:99999",
        "h:1/path",
        "u@h:1",
        "unix:",
        "unix://",
        "unixs:",
        "unixs://",
        "[::1:5",
        "h:1?x",
        "h:1#x",
    ],
)
def test_what_is_no_endpoint_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidEndpoint) as caught:
        parse_endpoint(text)
    assert repr(text) in str(caught.value)


def test_several_endpoints() -> None:
    assert [endpoint.text for endpoint in parse_endpoints("a:1, b:2,")] == ["a:1", "b:2"]
    assert [endpoint.text for endpoint in parse_endpoints(["a:1", "unix:///a,b"])] == ["a:1", "unix:///a,b"]
    for nothing in ("", " , ", [""]):
        with pytest.raises(InvalidEndpoint, match="no endpoint given"):
            parse_endpoints(nothing)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"a", b"b"),
        ("/svc/", b"/svc0"),
        (b"a\xff", b"b"),
        (b"a\xff\xff", b"b"),
        (b"\xff\xff", b"\0"),
        (b"a\x00", b"a\x01"),
        ("\u00e9", b"\xc3\xaa"),
    ],
)
def test_the_end_of_a_prefix(prefix: bytes | str, end: bytes) -> None:
    assert prefix_end(prefix) == end
