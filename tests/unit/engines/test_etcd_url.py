# SPDX-License-Identifier: Apache-2.0
"""The address of a log in an etcd: what it means, what is refused, and that no error quotes what may be a password."""

from pathlib import Path

import pytest

from lessor.durable.shared_log import LogRefusedError
from lessor.engines.etcd_url import ALWAYS, AUTO, EtcdUrl, parse
from lessor.engines.log_etcd import EtcdLog

SECRET = "geheim"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("etcd://h", EtcdUrl(("h:2379",), b"/lessor/", False)),
        ("etcd://h/", EtcdUrl(("h:2379",), b"/lessor/", False)),
        ("etcd://h:1,[::1]:2,[::2]/a/b/", EtcdUrl(("h:1", "[::1]:2", "[::2]:2379"), b"/a/b/", False)),
        ("etcds://h/a%20b", EtcdUrl(("h:2379",), b"/a b/", True)),
        ("etcd://u:p%2F%40%3A@h", EtcdUrl(("h:2379",), b"/lessor/", False, user="u", password="p/@:")),
        ("etcd://u:p:q@h", EtcdUrl(("h:2379",), b"/lessor/", False, user="u", password="p:q")),
        ("etcd://u:@h", EtcdUrl(("h:2379",), b"/lessor/", False, user="u")),
        (
            "etcds://h?cacert=/x%26y&cert=c&key=k&compact=always",
            EtcdUrl(("h:2379",), b"/lessor/", True, "/x&y", "c", "k", ALWAYS),
        ),
    ],
)
def test_an_address_is_read(text: str, expected: EtcdUrl) -> None:
    assert parse(text) == expected


def test_what_is_not_written_is_as_the_page_says() -> None:
    url = parse("etcd://h")
    assert (url.compact, url.user, url.password, url.cacert, url.cert, url.key) == (AUTO, "", "", "", "", "")


def test_the_password_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("p/ w\n")
    url = parse(f"etcd://h?user=u&password-file={path}")
    assert (url.user, url.password) == ("u", "p/ w")
    with pytest.raises(LogRefusedError, match="no such file"):
        parse(f"etcd://h?user=u&password-file={path}x")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(LogRefusedError, match="not a text"):
        parse(f"etcd://h?user=u&password-file={path}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h:2379",
        "http://h",
        f"postgres://u:{SECRET}@h",
        f"etcd://u:{SECRET}@",
        f"etcd://u:{SECRET}@h,",
        f"etcd://u:{SECRET}@h:",
        f"etcd://u:{SECRET}@h:x",
        f"etcd://u:{SECRET}@h:65536",
        f"etcd://u:{SECRET}@::1",
        f"etcd://u:{SECRET}@[::1",
        f"etcd://u:{SECRET}@[]:1",
        f"etcd://u:1/{SECRET}@h",  # a slash in the password
        f"etcd://u:{SECRET}/x@h",
        f"etcd://u:{SECRET}?x@h",
        f"etcd://u:{SECRET}#x@h",
        f"etcd://u:1?{SECRET}@h",
        f"etcd://{SECRET}@h",
        f"etcd://:{SECRET}@h",
        f"etcd://u:{SECRET}@h?user=v&password-file=/dev/null",
        "etcd://h?user=u",
        "etcd://h?password-file=/dev/null",
        f"etcd://h?passwort={SECRET}",
        f"etcd://h?{SECRET}",
        "etcd://h?compact=",
        "etcd://h?compact=yes",
        "etcd://h?compact=never&compact=never",
        "etcd://h?cacert=c",
        "etcds://h?cert=c",
        "etcds://h?key=c",
        "etcd://h/a%0Ab",
    ],
)
def test_what_is_refused_is_refused_in_a_line_without_secrets(text: str) -> None:
    with pytest.raises(LogRefusedError) as caught:
        parse(text)
    said = str(caught.value)
    assert said.isprintable()
    assert SECRET not in said
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_nothing_that_is_printed_has_the_user_or_the_password() -> None:
    text = f"etcd://anastasia:{SECRET}@h/p"
    url, log = parse(text), EtcdLog(text)
    for said in (repr(url), str(url), repr(log), str(log)):
        assert SECRET not in said
        assert "anastasia" not in said
    assert "h:2379" in repr(log)
    log.close()
