# SPDX-License-Identifier: Apache-2.0
"""The flags about TLS: their names and help, and the checks that need no file. The names and texts are etcd's.

context.py reads the files when the server starts, and again whenever they change.
"""

import ssl
from typing import Any

import click

from lessor.server.options import Listen, OptionError, TlsOptions
from lessor.server.tls import ciphers

VERSIONS = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}

# Alone, or with a value after `=`, like Go's flags.
SWITCH: dict[str, Any] = {"type": bool, "default": False, "is_flag": False, "flag_value": "true", "metavar": "[=BOOL]"}
# (name, settings for click.option)
FLAGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cert-file", {"default": "", "help": "Certificate (PEM, with its chain) for https:// and unixs:// URLs."}),
    ("key-file", {"default": "", "help": "Private key of the certificate (PEM)."}),
    ("client-cert-auth", {**SWITCH, "help": "Ask clients for a certificate, and take its common name as the user."}),
    ("trusted-ca-file", {"default": "", "help": "CA certificates (PEM). Clients must have a certificate of theirs."}),
    ("client-crl-file", {"default": "", "help": "Revocation list: client certificates that are refused."}),
    ("client-cert-allowed-hostname", {"default": "", "help": "Names, with commas; a client's must have one of them."}),
    ("auto-tls", {**SWITCH, "help": "Serve https:// with a certificate made at the first start."}),
    (
        "self-signed-cert-validity",
        {"default": 1, "type": click.IntRange(1, 100), "help": "Years that such a certificate is good for."},
    ),
    ("cipher-suites", {"default": "", "help": "Cipher suites of TLS 1.2, with commas, by their IANA names."}),
    ("tls-min-version", {"default": "TLS1.2", "help": "Oldest version of TLS: TLS1.2 or TLS1.3."}),
    ("tls-max-version", {"default": "", "help": "Newest version of TLS: TLS1.2 or TLS1.3.  [default: the newest]"}),
)


def read(values: dict[str, Any], listen: tuple[Listen, ...]) -> TlsOptions:
    """Checks flags, by their Python names, against each other and the URLs. Raises OptionError."""
    options = TlsOptions(
        cert_file=values["cert_file"],
        key_file=values["key_file"],
        client_cert_auth=values["client_cert_auth"],
        trusted_ca_file=values["trusted_ca_file"],
        client_crl_file=values["client_crl_file"],
        client_cert_allowed_hostnames=_list(values["client_cert_allowed_hostname"]),
        auto=values["auto_tls"],
        self_signed_validity_years=values["self_signed_cert_validity"],
        cipher_suites=_list(values["cipher_suites"]),
        min_version=_version("tls-min-version", values["tls_min_version"]) or ssl.TLSVersion.TLSv1_2,
        max_version=_version("tls-max-version", values["tls_max_version"]),
    )
    _check_versions(values["tls_min_version"], values["tls_max_version"], options)
    secure = next((each.url for each in listen if each.tls), None)
    if secure is not None:
        _check_files(secure, options)
    return options


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _version(flag: str, text: str) -> ssl.TLSVersion | None:
    if text and text not in VERSIONS:
        raise OptionError(f'--{flag}: unexpected TLS version "{text}" (must be one of: TLS1.2, TLS1.3)')
    return VERSIONS.get(text)


def _check_versions(least: str, most: str, options: TlsOptions) -> None:
    if options.max_version is not None and options.min_version > options.max_version:
        raise OptionError(f"--tls-min-version: min version ({least}) is greater than max version ({most})")
    for name in options.cipher_suites:
        if not ciphers.known(name):
            raise OptionError(f'--cipher-suites: unexpected TLS cipher suite "{name}"')
        if not ciphers.available(name):
            raise OptionError(f"--cipher-suites: {name} is too weak for {ssl.OPENSSL_VERSION}; take it off the list")
    if options.cipher_suites and options.min_version is ssl.TLSVersion.TLSv1_3:
        raise OptionError("--cipher-suites: cipher suites cannot be configured when only TLS1.3 is enabled")
    only_new = options.cipher_suites and not ciphers.openssl_names(options.cipher_suites)
    if only_new and options.max_version is ssl.TLSVersion.TLSv1_2:
        raise OptionError("--cipher-suites: none of them is for TLS1.2, and --tls-max-version allows no more")


def _check_files(secure_url: str, options: TlsOptions) -> None:
    if not (options.cert_file or options.key_file or options.auto):
        raise OptionError(
            f"TLS key/cert (--cert-file, --key-file) must be provided for client url {secure_url} with HTTPS scheme"
        )
    if bool(options.cert_file) != bool(options.key_file):
        raise OptionError(
            "--cert-file and --key-file: KeyFile and CertFile must both be present"
            f"[key: {options.key_file}, cert: {options.cert_file}]"
        )
    # etcd accepts these two silently and does nothing with them, so it would refuse no client.
    if not options.asks_clients:
        for flag, value in (
            ("client-crl-file", options.client_crl_file),
            ("client-cert-allowed-hostname", options.client_cert_allowed_hostnames),
        ):
            if value:
                raise OptionError(f"--{flag}: no client is asked for a certificate; give --trusted-ca-file as well")
