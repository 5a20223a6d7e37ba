# SPDX-License-Identifier: Apache-2.0
"""The flags about TLS: etcd's names and words, and what is refused before a file is read."""

import ssl
from typing import Any

import pytest
from click.testing import CliRunner

from lessor.server import command, main
from lessor.server.options import Options, TlsOptions, parse_listen_url
from lessor.server.tls import ciphers

SECURE = ["--listen-client-urls", "https://127.0.0.1:1"]
FILES = ["--cert-file", "c", "--key-file", "k"]


def options_of(monkeypatch: pytest.MonkeyPatch, *words: str, **environment: str) -> Options:
    seen: list[Options] = []

    def run(options: Options, _install_signals: Any) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(main, "run", run)
    result = CliRunner().invoke(command.serve, list(words), env=environment)
    assert result.exit_code == 0, result.output
    return seen[0]


def test_without_flags_there_is_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_of(monkeypatch).tls == TlsOptions()


def test_every_flag_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    tls = options_of(
        monkeypatch,
        *SECURE,
        *FILES,
        *("--trusted-ca-file", "t", "--client-cert-auth", "--client-crl-file", "r"),
        *("--client-cert-allowed-hostname", "a.example, b.example", "--auto-tls=true"),
        *("--self-signed-cert-validity", "3", "--tls-min-version", "TLS1.2", "--tls-max-version", "TLS1.3"),
        *("--cipher-suites", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256"),
    ).tls
    assert tls == TlsOptions(
        cert_file="c",
        key_file="k",
        trusted_ca_file="t",
        client_cert_auth=True,
        client_crl_file="r",
        client_cert_allowed_hostnames=("a.example", "b.example"),
        auto=True,
        self_signed_validity_years=3,
        cipher_suites=("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
        min_version=ssl.TLSVersion.TLSv1_2,
        max_version=ssl.TLSVersion.TLSv1_3,
    )


@pytest.mark.parametrize(
    ("said", "meant"), [([], False), (["--auto-tls"], True), (["--auto-tls=false"], False), (["--auto-tls=1"], True)]
)
def test_a_switch_is_written_as_go_writes_it(monkeypatch: pytest.MonkeyPatch, said: list[str], meant: bool) -> None:
    assert options_of(monkeypatch, *said).tls.auto is meant
    assert options_of(monkeypatch, *said, "--name", "n").tls.auto is meant


def test_the_environment_speaks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of(
        monkeypatch,
        ETCD_LISTEN_CLIENT_URLS="https://127.0.0.1:1,unixs:///s",
        ETCD_CERT_FILE="c",
        ETCD_KEY_FILE="k",
        ETCD_CLIENT_CERT_AUTH="true",
    )
    assert (options.tls.cert_file, options.tls.key_file, options.tls.client_cert_auth) == ("c", "k", True)
    assert [(listen.tls, listen.unix_path) for listen in options.listen_client_urls] == [(True, ""), (True, "/s")]


def test_an_authority_alone_asks_clients_for_a_certificate() -> None:
    assert TlsOptions(trusted_ca_file="t").asks_clients
    assert TlsOptions(client_cert_auth=True).asks_clients
    assert not TlsOptions(cert_file="c", key_file="k").asks_clients


def test_certificates_without_a_secure_url_are_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_of(monkeypatch, "--cert-file", "not there").tls.cert_file == "not there"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (SECURE, "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1"),
        (["--listen-client-urls", "unixs:///s"], "must be provided for client url unixs:///s with HTTPS scheme"),
        ([*SECURE, "--cert-file", "c"], "KeyFile and CertFile must both be present[key: , cert: c]"),
        ([*SECURE, "--key-file", "k"], "KeyFile and CertFile must both be present[key: k, cert: ]"),
        (["--tls-min-version", "TLS1.1"], 'unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)'),
        (["--tls-max-version", "1.3"], 'unexpected TLS version "1.3"'),
        (
            ["--tls-min-version", "TLS1.3", "--tls-max-version", "TLS1.2"],
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        (["--cipher-suites", "ECDHE-RSA-AES128-SHA"], 'unexpected TLS cipher suite "ECDHE-RSA-AES128-SHA"'),
        (
            ["--cipher-suites", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "--tls-min-version", "TLS1.3"],
            "cipher suites cannot be configured when only TLS1.3 is enabled",
        ),
        (["--cipher-suites", "TLS_AES_128_GCM_SHA256", "--tls-max-version", "TLS1.2"], "none of them is for TLS1.2"),
        (["--self-signed-cert-validity", "0"], "--self-signed-cert-validity"),
        ([*SECURE, *FILES, "--client-crl-file", "r"], "--client-crl-file: no client is asked for a certificate"),
        ([*SECURE, *FILES, "--client-cert-allowed-hostname", "h"], "no client is asked for a certificate"),
        (["--auto-tls=perhaps"], "perhaps"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str) -> None:
    result = CliRunner().invoke(command.serve, words)
    assert result.exit_code != 0
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_secure_urls() -> None:
    https = parse_listen_url("https://127.0.0.1:1")
    assert (https.host, https.port, https.tls) == ("127.0.0.1", 1, True)
    unixs = parse_listen_url("unixs:///run/s")
    assert (unixs.unix_path, unixs.tls) == ("/run/s", True)
    assert not parse_listen_url("http://127.0.0.1:1").tls
    assert not parse_listen_url("unix:///run/s").tls


def test_openssl_knows_each_suite_by_the_name_in_the_table() -> None:
    """A suite that OpenSSL has must be the one whose IANA name was asked for; OpenSSL tells both."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    there = {each["name"] for each in context.get_ciphers()}
    for name, openssl_name in ciphers._OPENSSL.items():
        assert ciphers.available(name) or openssl_name not in there or "RC4" in name
        key_exchange, _, rest = name.removeprefix("TLS_").partition("_WITH_")
        assert openssl_name.startswith(key_exchange.replace("_", "-").replace("RSA", "RSA")) or key_exchange == "RSA"
        assert ("256" in rest.split("_SHA")[0]) == ("256" in openssl_name.split("-SHA")[0].replace("POLY1305", ""))


def test_suites_keep_their_order_and_leave_out_those_of_tls_1_3() -> None:
    names = ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA")
    assert ciphers.openssl_names(names) == "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-SHA"
    assert ciphers.openssl_names(("TLS_AES_128_GCM_SHA256",)) == ""
