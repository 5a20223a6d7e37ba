# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin, as its users meet it: in a folder of their own. And docs/testing.md, whose examples are run."""

import re
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow  # each runs pytest

ROOT = Path(__file__).resolve().parents[2]
# An installation finds the plugin by its entry point; a source tree has none.
INSTALLED = any(point.value == "lessor.testing.pytest_plugin" for point in entry_points(group="pytest11"))
PLUGIN = [] if INSTALLED else ["-p", "lessor.testing.pytest_plugin"]
# What the examples of the documents use beyond Lessor; each is run where its libraries are.
NEEDS = {"test_election.py": ["tooz", "etcd3gw"]}

# A run of pytest inside of this one forgets again what it has imported. These cannot be imported a second time: C code
# goes on with the classes of the first.
for module in ("lessor.testing.server", "tests.certificates"):
    import_module(module)

SHARING = """
    import urllib.request

    def put(server):
        urllib.request.urlopen(server.client_url + "/v3/kv/put", b'{"key": "aw=="}').read()

    def count(server):
        body = urllib.request.urlopen(server.client_url + "/v3/kv/range", b'{"key": "aw=="}').read()
        return body.count(b'"kvs"')
"""


def run(pytester: pytest.Pytester, **outcomes: int) -> None:
    pytester.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider").assert_outcomes(**outcomes)


def test_each_test_has_a_server_of_its_own_unless_it_shares_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(sharing=SHARING)
    story = """
        from sharing import count, put

        def test_first(lessor_server, lessor_server_module, lessor_server_session):
            for server in (lessor_server, lessor_server_module, lessor_server_session):
                put(server)
                assert count(server) == 1

        def test_second(lessor_server, lessor_server_module, lessor_server_session):
            assert [count(lessor_server), count(lessor_server_module), count(lessor_server_session)] == [0, 1, 1]
    """
    other = """
        from sharing import count

        def test_third(lessor_server_module, lessor_server_session):
            assert [count(lessor_server_module), count(lessor_server_session)] == [0, 1]
    """
    pytester.makepyfile(test_a=story, test_b=other)
    run(pytester, passed=3)


def test_clock_and_client_belong_to_the_server(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio

        def test_hour(lessor_server, lessor_client, lessor_clock):
            assert lessor_clock is lessor_server.clock
            lease = lessor_client.grant(3600)
            lessor_clock.jump(3599)
            assert lessor_client.time_to_live(lease.ID).TTL == 1
            lessor_clock.jump(1)
            assert lessor_client.time_to_live(lease.ID).TTL == -1

        def test_asyncio(lessor_client, lessor_async_client):
            async def story():
                async with lessor_async_client as client:
                    await client.put("k", "v")

            asyncio.run(story())
            assert lessor_client.get("k").count == 1
        """
    )
    run(pytester, passed=2)


def test_the_client_is_closed_after_the_test_even_when_its_server_is_gone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from lessor.client import ClientClosed

        used = []

        def test_uses_it(lessor_server, lessor_client):
            lessor_client.lease(60).grant()
            used.append(lessor_client)
            lessor_server.kill()

        def test_finds_it_closed():
            with pytest.raises(ClientClosed):
                used[0].get("k")
        """
    )
    run(pytester, passed=2)


def test_a_lease_that_a_jump_has_ended_is_lost_with_its_next_renewal(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_lost(lessor_client, lessor_clock):
            with lessor_client.lease(3) as lease:
                lessor_clock.jump(60)
                assert lease.lost.wait(timeout_s=10)
                # Not by the client's own clock, by which it would be lost as well, only later.
                assert "the server says" in str(lease.lost_error)

        def test_not_lost_while_time_stands_still(lessor_client):
            with lessor_client.lease(3) as lease:
                assert not lease.lost.wait(timeout_s=1.5)
                assert lease.alive
        """
    )
    run(pytester, passed=2)


def test_tls_auth_and_flags(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import urllib.error
        import urllib.request

        import pytest
        from lessor.client import ServerError

        def put(client):
            with client:
                client.put("k", "v")

        def test_tls(lessor_server_tls):
            assert lessor_server_tls.client_url.startswith("https://")
            put(lessor_server_tls.client())
            with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
                urllib.request.urlopen(lessor_server_tls.client_url)

        def test_auth(lessor_server_auth):
            put(lessor_server_auth.client())
            with pytest.raises(ServerError, match="user name is empty"):
                put(lessor_server_auth.client(user=""))
            lessor_server_auth.restart()
            put(lessor_server_auth.client())

        def test_factory(lessor_server_factory):
            both = lessor_server_factory("--name=both", tls=True, root_password="secret")
            assert both.server.options.name == "both"
            put(both.client())
            assert lessor_server_factory().address != both.address
        """
    )
    run(pytester, passed=3)


def blocks() -> dict[str, str]:
    """The files that docs/testing.md shows, by name."""
    text = (ROOT / "docs" / "testing.md").read_text()
    return {name: block for block, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", text, re.DOTALL)}


@pytest.mark.parametrize("name", [name for name in blocks() if name.startswith("test_")])
def test_the_examples_of_the_documents_run(pytester: pytest.Pytester, name: str) -> None:
    missing = [library for library in NEEDS.get(name, []) if find_spec(library) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    for file, text in blocks().items():
        if file == name or not file.startswith("test_"):
            (pytester.path / file).write_text(text)
    outcomes = pytester.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider").parseoutcomes()
    assert set(outcomes) <= {"passed", "xfailed"}
    assert outcomes["passed"] >= 1
