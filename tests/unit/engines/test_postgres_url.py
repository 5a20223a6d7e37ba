# SPDX-License-Identifier: Apache-2.0
"""The URL of a log in PostgreSQL: what libpq gets, what is ours, and that no error tells a secret."""

import pytest

from lessor.durable.shared_log import LogRefusedError

psycopg = pytest.importorskip("psycopg", reason="the package psycopg is not here")

from lessor.engines.named import shared_log  # noqa: E402
from lessor.engines.postgres_url import Address  # noqa: E402

SECRET = "Gras/grün?hoch@3"
WRITTEN = "Gras%2Fgr%C3%BCn%3Fhoch%403"


def parts(url: str) -> list[dict[str, str]]:
    return [psycopg.conninfo.conninfo_to_dict(host) for host in Address(url).hosts]


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPASSWORD", "PGCONNECT_TIMEOUT", "PGAPPNAME"):
        monkeypatch.delenv(name, raising=False)


def test_libpqs_names_mean_what_they_mean_there() -> None:
    (found,) = parts(f"postgresql://me:{WRITTEN}@db:5433/base?sslmode=verify-full&sslrootcert=/ca.pem&schema=mine")
    expected = {
        "user": "me",
        "password": SECRET,
        "host": "db",
        "port": "5433",
        "dbname": "base",
        "sslmode": "verify-full",
        "sslrootcert": "/ca.pem",
    }
    assert expected.items() <= found.items()
    assert "schema" not in found


def test_a_dead_peer_is_noticed_unless_the_url_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = parts("postgres://db")
    assert (found["connect_timeout"], found["tcp_user_timeout"], found["keepalives_idle"]) == ("2", "5000", "2")
    (found,) = parts("postgres://db?connect_timeout=9&tcp_user_timeout=1&application_name=a")
    assert (found["connect_timeout"], found["tcp_user_timeout"], found["application_name"]) == ("9", "1", "a")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "7")
    (found,) = parts("postgres://db")
    assert "connect_timeout" not in found


def test_each_host_is_one_of_its_own() -> None:
    found = parts("postgres://a,b:1,c/base")
    assert [(one.get("host"), one.get("port")) for one in found] == [("a", ""), ("b", "1"), ("c", "")]
    found = parts("postgres:///base?host=a,b&port=7&user=me")
    assert [(one["host"], one["port"], one["user"]) for one in found] == [("a", "7", "me"), ("b", "7", "me")]
    with pytest.raises(LogRefusedError, match="another number of ports"):
        Address("postgres:///base?host=a,b,c&port=7,8")


@pytest.mark.parametrize(("url", "schema"), [("postgres://db", "lessor"), ("postgres://db?schema=a_1", "a_1")])
def test_the_schema_is_ours(url: str, schema: str) -> None:
    assert Address(url).schema == schema


@pytest.mark.parametrize("schema", ["", "Big", "a-b", "a.b", "1a", "a" * 64, "pg_mine", "a;DROP", "%61"])
def test_a_schema_that_would_have_to_be_quoted_is_refused(schema: str) -> None:
    with pytest.raises(LogRefusedError, match="the schema in the engine's URL"):
        Address(f"postgres://db?schema={schema}")


@pytest.mark.parametrize(
    "url",
    [
        "postgres://me:Gras@grün@db/base",
        "postgres://me:Gras/grün@db/base",
        "postgres://me:Gras?grün@db/base",
        "postgres://me:Gras%grün@db/base",
        "postgres://me:Gras%g@db/base",
        "postgres://me@db/base?password=Gras&grün",
        "postgres://me@db/base?passwort=Grasgrün",
        "postgres://me@db/base?password=Gras@grün",
        "postgres://me:Gras\0grün@db/base",
        "postgres://me:Grasgrün@[db/base",
        "postgres://me:Grasgrün@db:port:9/base",
        "postgres://db:Grasgrün/base",
        "mysql://me:Grasgrün@db/base",
        "Grasgrün",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_any_of_it(url: str) -> None:
    with pytest.raises(LogRefusedError) as raised:
        Address(url)
    shown = str(raised.value) + repr(raised.value.__cause__)
    assert "Gras" not in shown
    assert "grün" not in shown
    assert "\n" not in shown


def test_texts_of_others_are_scrubbed_and_put_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "from-outside")
    address = Address(f"postgres://me:{WRITTEN}@db/base?sslpassword=key-word")
    text = f"tried {SECRET}, key-word\n\tand from-outside\r\nin \x1b[31mvain\n"
    assert address.scrubbed(text) == "tried ***, ***; and ***; in \\u001b[31mvain"
    assert address.scrubbed("nothing of it") == "nothing of it"


def test_no_repr_tells_a_secret() -> None:
    log = shared_log(f"postgres://me:{WRITTEN}@db/base")
    for shown in (repr(log), repr(Address(f"postgres://me:{WRITTEN}@db/base"))):
        assert "Gras" not in shown
        assert "db/base/lessor" in shown


def test_people_are_shown_hosts_ports_database_and_schema() -> None:
    assert Address(f"postgres://me:{WRITTEN}@a:1,b/base?schema=s").shown == "a:1,b/base/s"


def test_a_url_of_no_engine_is_refused() -> None:
    with pytest.raises(LogRefusedError, match="the engine's URL"):
        shared_log("mysql://db")
