# SPDX-License-Identifier: Apache-2.0
"""The command line of the server: etcd's names and values, one line for each mistake."""

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from lessor.base import limits
from lessor.server import command
from lessor.server.options import OptionError, Options, parse_duration_s, parse_listen_url, parse_retention

pytestmark = pytest.mark.usefixtures("logger_as_before")


@pytest.fixture
def options_of(start: Callable[..., Any]) -> Callable[..., Options]:
    """The options that `lessor serve` makes of these words and variables."""

    def run(*words: str, **environment: str) -> Options:
        result, options = start(list(words), environment)
        assert result.exit_code == 0, result.output
        found: Options = options
        return found

    return run


def test_defaults(options_of: Callable[..., Options]) -> None:
    options = options_of()
    assert (options.name, options.data_dir) == ("default", "default.lessor")
    assert [(listen.host, listen.port) for listen in options.listen_client_urls] == [("localhost", 2379)]
    assert options.advertise_client_urls == ("http://localhost:2379",)
    assert options.quota_backend_bytes == 2 * 1024**3
    assert (options.max_txn_ops, options.max_request_bytes) == (128, 1_572_864)
    assert options.min_lease_ttl_s == limits.LEASE_TTL_S_MIN == 1
    assert options.auto_compaction_retention == 0
    assert options.grpc_keepalive == (5, 7200, 20)
    assert (options.auth_token, options.auth_token_ttl_s, options.bcrypt_cost) == ("simple", 300, 10)


@pytest.mark.parametrize(
    ("min_time", "interval", "timeout", "seconds"),
    [
        ("100ms", "90s", "2s", (0.1, 90, 2)),
        ("0", "1m", "1s", (300, 60, 1)),  # gRPC's own minimum, as in etcd
        ("5s", "0s", "1s", (5, 7200, 20)),
        ("5s", "1m", "0", (5, 7200, 20)),
        ("5s", "10ms", "10ms", (5, 1, 0.01)),
    ],
)
def test_keepalive_times_and_what_zero_means(
    options_of: Callable[..., Options], min_time: str, interval: str, timeout: str, seconds: tuple[float, float, float]
) -> None:
    flags = zip(("min-time", "interval", "timeout"), (min_time, interval, timeout), strict=True)
    words = [word for name, value in flags for word in (f"--grpc-keepalive-{name}", value)]
    assert options_of(*words).grpc_keepalive == seconds


def test_flags_and_environment_mean_the_same(options_of: Callable[..., Options]) -> None:
    by_flag = options_of("--name", "n1", "--max-txn-ops", "7", "--listen-client-urls", "http://127.0.0.1:1,unix:///s")
    by_environment = options_of(
        ETCD_NAME="n1", ETCD_MAX_TXN_OPS="7", ETCD_LISTEN_CLIENT_URLS="http://127.0.0.1:1,unix:///s"
    )
    assert by_flag == by_environment
    assert by_flag.data_dir == "n1.lessor"
    assert [listen.unix_path for listen in by_flag.listen_client_urls] == ["", "/s"]


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--name", "a"], {"ETCD_NAME": "b"}, "both --name and ETCD_NAME are set"),
        (["--listen-client-urls", "ftp://x:1"], {}, "must start with http://, https://, unix:// or unixs://"),
        (["--bcrypt-cost", "3"], {}, "--bcrypt-cost"),
        (["--grpc-keepalive-interval", "5"], {}, "--grpc-keepalive-interval: '5' is not a duration"),
        (["--bcrypt-cost", "32"], {}, "--bcrypt-cost"),
        (["--auth-token-ttl", "-1"], {}, "--auth-token-ttl"),
        (["--listen-client-urls", "http://x"], {}, "must be http://host:port"),
        (["--listen-client-urls", "http://x:99999"], {}, "has no port between 0 and 65535"),
        (["--advertise-client-urls", "zzz"], {}, "must be a URL like http://host:port"),
        (["--name", ""], {}, "--name"),
        (["--name", "a/b"], {}, "--name"),
        (["--min-lease-ttl", "9000000001"], {}, "--min-lease-ttl"),
        (["--listen-client-urls", "http://x:1/path"], {}, "must be http://host:port"),
        (["--auto-compaction-mode", "sometimes"], {}, "sometimes"),
        (["--auto-compaction-retention", "often"], {}, "--auto-compaction-retention"),
        (
            ["--auto-compaction-mode", "revision", "--auto-compaction-retention", "5m"],
            {},
            "--auto-compaction-retention",
        ),
        (["--watch-progress-notify-interval", "10ms"], {}, "100ms is the least"),
        (["--quota-backend-bytes", "-1"], {}, "must not be negative"),
        (["--min-lease-ttl", "0"], {}, "--min-lease-ttl"),
        (["--heartbeat"], {}, "No such option"),
    ],
)
def test_a_mistake_is_named(words: list[str], environment: dict[str, str], said: str) -> None:
    result = CliRunner().invoke(command.serve, words, env=environment)
    assert result.exit_code != 0
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("100ms", 0.1), ("1.5h", 5400), ("2m0.5s", 120.5)],
)
def test_durations_as_go_writes_them(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-5s", "5x", "5s!", "1h 30m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("mode", "text", "retention"),
    [("periodic", "0", 0), ("periodic", "1", 3600), ("periodic", "30m", 1800), ("revision", "1000", 1000)],
)
def test_retention(mode: str, text: str, retention: float) -> None:
    assert parse_retention(mode, text) == retention


def test_a_negative_retention_is_refused() -> None:
    with pytest.raises(OptionError, match="negative"):
        parse_retention("periodic", "-1")


def test_a_unix_socket_may_be_relative_and_needs_a_name() -> None:
    assert parse_listen_url("unix://s.sock").unix_path == "s.sock"
    with pytest.raises(OptionError, match="names no socket"):
        parse_listen_url("unix://")


@pytest.mark.parametrize(
    "words",
    [["-name=n", "-max-txn-ops", "7"], ["--name", "n", "-max-txn-ops=7"]],
)
def test_one_dash_is_as_good_as_two(options_of: Callable[..., Options], words: list[str]) -> None:
    options = options_of(*words)
    assert (options.name, options.max_txn_ops) == ("n", 7)


def test_an_older_name_of_a_flag(options_of: Callable[..., Options]) -> None:
    assert options_of("--experimental-watch-progress-notify-interval=5s").watch_progress_notify_interval_s == 5
