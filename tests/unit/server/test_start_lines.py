# SPDX-License-Identifier: Apache-2.0
"""Start lines of etcds of one member serve as they are; what would change a promise is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("logger_as_before")

IDLE = "these flags of etcd have no effect here"
# What people start: kubeadm's manifest, a container as the etcd documentation runs it, a unit with an environment file
# as Debian has it, the environment of Bitnami's image, the documentation's line for one node.
KUBEADM = (
    "--advertise-client-urls=https://10.0.0.4:2379 --cert-file=server.crt --client-cert-auth=true "
    "--data-dir=/var/lib/etcd --experimental-initial-corrupt-check=true "
    "--experimental-watch-progress-notify-interval=5s --initial-advertise-peer-urls=https://10.0.0.4:2380 "
    "--initial-cluster=cp1=https://10.0.0.4:2380 --key-file=server.key "
    "--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.4:2379 --listen-metrics-urls=http://127.0.0.1:2381 "
    "--listen-peer-urls=https://10.0.0.4:2380 --name=cp1 --peer-cert-file=peer.crt --peer-client-cert-auth=true "
    "--peer-key-file=peer.key --peer-trusted-ca-file=ca.crt --snapshot-count=10000 --trusted-ca-file=ca.crt "
    "--feature-gates=InitialCorruptCheck=true"
)
CONTAINER = (
    "-name node1 -data-dir=/etcd-data -initial-advertise-peer-urls http://10.0.0.4:2380 "
    "-listen-peer-urls http://0.0.0.0:2380 -advertise-client-urls http://10.0.0.4:2379 "
    "-listen-client-urls http://0.0.0.0:2379 -initial-cluster node1=http://10.0.0.4:2380 -initial-cluster-state new "
    "-initial-cluster-token tkn -log-level info -logger zap -log-outputs stderr -enable-v2=false "
    "-heartbeat-interval 100 -election-timeout 1000 -auto-compaction-retention 1"
)
ONE_NODE = (
    "--name infra0 --initial-advertise-peer-urls http://10.0.1.10:2380 --listen-peer-urls http://10.0.1.10:2380 "
    "--listen-client-urls http://10.0.1.10:2379,http://127.0.0.1:2379 --advertise-client-urls http://10.0.1.10:2379 "
    "--initial-cluster-token etcd-cluster-1 --initial-cluster infra0=http://10.0.1.10:2380 --initial-cluster-state new"
)
DEBIAN = {"ETCD_NAME": "host", "ETCD_DATA_DIR": "/var/lib/etcd/default", "ETCD_LISTEN_PEER_URLS": "http://x:2380"}
BITNAMI = {
    "ALLOW_NONE_AUTHENTICATION": "yes",
    "ETCD_DATA_DIR": "/bitnami/etcd/data",
    "ETCD_ADVERTISE_CLIENT_URLS": "http://etcd:2379",
    "ETCD_LISTEN_CLIENT_URLS": "http://0.0.0.0:2379",
    "ETCD_LISTEN_PEER_URLS": "http://0.0.0.0:2380",
    "ETCD_INITIAL_ADVERTISE_PEER_URLS": "http://etcd:2380",
    "ETCD_INITIAL_CLUSTER": "default=http://etcd:2380",
    "ETCD_INITIAL_CLUSTER_STATE": "new",
    "ETCD_LOG_LEVEL": "info",
    "ETCD_FORCE_NEW_CLUSTER": "",
}


@pytest.mark.parametrize("words", [KUBEADM, CONTAINER, ONE_NODE])
def test_start_lines_of_one_member(start: Callable[..., Any], words: str) -> None:
    result, options = start(words.split())
    assert result.exit_code == 0, result.output
    assert options.name in ("cp1", "node1", "infra0")
    (line,) = result.output.splitlines()
    assert IDLE in line
    for name in ("-listen-peer-urls", "-initial-cluster"):
        assert name in line


@pytest.mark.parametrize("environment", [DEBIAN, BITNAMI], ids=["debian", "bitnami"])
def test_environments_of_one_member(start: Callable[..., Any], environment: dict[str, str]) -> None:
    result, options = start([], environment)
    assert result.exit_code == 0, result.output
    assert options.data_dir == environment["ETCD_DATA_DIR"]
    (line,) = result.output.splitlines()
    assert IDLE in line
    assert "ETCD_LISTEN_PEER_URLS" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--initial-cluster", "a=http://x:1,b=http://y:1"],
            "--initial-cluster: this is one server; several on one log",
        ),
        (["--discovery=https://x"], "--discovery: this is one server"),
        (["--force-new-cluster"], "--force-new-cluster: restore a snapshot instead"),
        (["--unsafe-no-fsync=true"], "--unsafe-no-fsync: a reply means that its write is on disk"),
        (["--proxy", "on"], "--proxy: this is one server"),
        (["--enable-v2"], "--enable-v2: there is no API of version 2"),
        (["--cors=https://a"], "--cors: pages of any origin may ask"),
        (["--enable-grpc-gateway=false"], "--enable-grpc-gateway: each port serves JSON too"),
        (["--enable-distributed-tracing"], "there is no tracing"),
        (["--wal-dir=/w", "--proxy=on", "--unsafe-no-fsync"], "/dev/shm)"),
    ],
)
def test_what_would_change_a_promise_is_refused(start: Callable[..., Any], words: list[str], said: str) -> None:
    name, _, value = " ".join(words[:1]).partition("=")
    result, options = start(words)
    assert (result.exit_code, options) == (2, None)
    assert said in result.output
    assert len(result.output.splitlines()) == 1
    if len(words) == 1:
        variable = "ETCD_" + name.removeprefix("--").upper().replace("-", "_")
        result, options = start([], {variable: value or "true"})
        assert (result.exit_code, options) == (2, None)
        assert variable in result.output


@pytest.mark.parametrize(
    "words",
    [
        ["--initial-cluster", "a=http://x:1,a=http://y:1"],
        ["--force-new-cluster=false", "--unsafe-no-fsync=false", "--proxy=off", "--enable-grpc-gateway", "--cors=*"],
        ["--pre-vote", "--name", "a"],  # a switch of Go's takes no word
    ],
)
def test_values_that_do_no_harm(start: Callable[..., Any], words: list[str]) -> None:
    result, options = start(words)
    assert result.exit_code == 0, result.output
    assert options.name == ("a" if "--name" in words else "default")


def test_strict_flags_refuses_them_all(start: Callable[..., Any]) -> None:
    result, options = start(["--strict-flags", "--wal-dir", "w", "-pre-vote"], {"ETCD_MAX_WALS": "5"})
    assert (result.exit_code, options) == (2, None)
    assert "--wal-dir, -pre-vote, ETCD_MAX_WALS: without effect" in result.output
    assert start(["--strict-flags"])[0].exit_code == 0


def test_what_is_nobodys_flag_is_not_taken(start: Callable[..., Any]) -> None:
    for words in (["--bogus"], ["--name=a", "wal-dir"], ["--wal-dirs=x"]):
        result, options = start(words)
        assert (result.exit_code, options) == (2, None)


CONFIG = """\
# as the sample that etcd comes with
name: 'n1'
data-dir: /var/lib/n1
wal-dir:
snapshot-count: 10000
listen-peer-urls: http://localhost:2380
listen-client-urls: "http://127.0.0.1:2379,http://127.0.0.1:4001"
cors:
initial-cluster: n1=http://localhost:2380
strict-reconfig-check: false
enable-pprof: true
proxy: 'off'
quota-backend-bytes: 5000000
watch-progress-notify-interval: 600000000000
grpc-keepalive-min-time: 5000000000
auto-compaction-mode: periodic
auto-compaction-retention: "1"
client-transport-security:
  cert-file:
  client-cert-auth: false
  auto-tls: false
  allowed-hostname:
peer-transport-security:
  cert-file: p.crt
  client-cert-auth: true
  allowed-cn: [x]
self-signed-cert-validity: 1
log-level: debug
logger: zap
log-outputs: [stderr]
force-new-cluster: false
cipher-suites: [
  TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
]
tls-min-version: 'TLS1.2'
"""


def test_a_config_file(start: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "etcd.conf.yml"
    file.write_text(CONFIG)
    result, options = start(["--config-file", str(file), "--name=other"], {"ETCD_DATA_DIR": "elsewhere"})
    assert result.exit_code == 0, result.output
    assert (options.name, options.data_dir, options.log_level) == ("n1", "/var/lib/n1", "debug")
    assert [listen.port for listen in options.listen_client_urls] == [2379, 4001]
    assert options.quota_backend_bytes == 5_000_000
    assert options.watch_progress_notify_interval_s == 600
    assert options.grpc_keepalive.min_time_s == 5
    assert options.auto_compaction_retention == 3_600
    assert len(options.tls.cipher_suites) == 2
    idle, others = result.output.splitlines()
    assert IDLE in idle
    assert "--peer-cert-allowed-cn" in idle
    assert '"flags": "--name, --data-dir"' in others


def test_flags_of_etcd_beside_a_config_file_do_not_count_and_are_named(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "c.yml"
    file.write_text("name: n1")
    words = ["--config-file", str(file), "--unsafe-no-fsync", "--snapshot-count=5"]
    result, options = start(words, {"ETCD_FORCE_NEW_CLUSTER": "true"})
    assert (result.exit_code, options.name) == (0, "n1")
    (line,) = result.output.splitlines()
    assert "do not count" in line
    for name in ("--unsafe-no-fsync", "--snapshot-count", "ETCD_FORCE_NEW_CLUSTER"):
        assert name in line


def test_strict_flags_in_a_config_file(start: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "c.yml"
    file.write_text("strict-flags: true\nsnapshot-count: 5\n")
    result, options = start(["--config-file", str(file)])
    assert (result.exit_code, options) == (2, None)
    assert "snapshot-count: without effect" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [a", "not YAML"),
        ("- a", "no table of names and values"),
        ("client-transport-security: yes", "client-transport-security: no table"),
        ("name: {a: b}", "name: no text, number, truth value or list of them"),
        ("no-such-flag: 1", "No such option"),
        ("initial-cluster: a=http://x:1,b=http://y:1", "this is one server"),
        ("max-txn-ops: many", "not a valid integer"),
        ("\0", "not YAML"),
        ("a: &a [*a]", "a: no text, number"),
    ],
)
def test_a_bad_config_file(start: Callable[..., Any], tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yml"
    file.write_text(text)
    result, options = start(["--config-file", str(file)])
    assert (result.exit_code, options) == (2, None)
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_config_file_that_is_not_there(start: Callable[..., Any]) -> None:
    result, _ = start(["--config-file=/no/such/file"])
    assert (result.exit_code, "--config-file: /no/such/file: No such file" in result.output) == (2, True)


def test_metrics_urls_with_tls_and_no_certificate(start: Callable[..., Any]) -> None:
    result, _ = start(["--listen-metrics-urls=https://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "--cert-file, --key-file) must be provided for client url https://127.0.0.1:1" in " ".join(
        result.output.split()
    )


def test_the_version(start: Callable[..., Any]) -> None:
    result, options = start(["--version"])
    assert (result.exit_code, options) == (0, None)
    assert result.output.startswith("lessor version: ")
