# SPDX-License-Identifier: Apache-2.0
"""Certificates, keys, authorities, revocation lists: what is taken, what is refused, what happens on a change."""

import base64
import dataclasses
import logging
import os
import ssl
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from lessor.server.observe.shortages import Shortages
from lessor.server.options import OptionError, Options, TlsOptions, parse_listen_url
from lessor.server.tls import listeners, peer, revocation, self_signed
from lessor.server.tls.context import CredentialFiles, load
from tests.certificates import NOW, Authority, write_key
from tests.irregular import MAKERS, put

CA = Authority("ca")
LIST = CA.revoke([1, 2**100])


def options(folder: Path, **more: object) -> TlsOptions:
    files = CA.issue(folder, "server")
    return TlsOptions(cert_file=str(files.certificate), key_file=str(files.key), **more)  # type: ignore[arg-type]


# --- loading ---


def test_clients_are_asked_only_where_the_options_say_so(tmp_path: Path) -> None:
    assert load(options(tmp_path)).context.verify_mode is ssl.CERT_NONE
    ca = str(CA.write(tmp_path / "ca.pem"))
    context = load(options(tmp_path, trusted_ca_file=ca)).context
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1
    assert load(options(tmp_path, client_cert_auth=True)).context.verify_mode is ssl.CERT_REQUIRED


NO_FILES = sorted(set(MAKERS) - {"a symbolic link to a file", "a symbolic link to nothing"})


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["cert_file", "key_file", "trusted_ca_file", "client_crl_file"])
def test_what_is_no_file_is_named_and_holds_nobody_up(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "in").mkdir()
    put(kind, tmp_path / "in" / "it")
    named: dict[str, object] = {"trusted_ca_file": str(CA.write(tmp_path / "ca.pem"))}
    given = options(tmp_path, **named)
    change: dict[str, Any] = {name: str(tmp_path / "in" / "it")}
    broken = dataclasses.replace(given, **change)
    with pytest.raises(OptionError, match=f"^--{name.replace('_', '-')}: open .*: (it is a|no such device)") as caught:
        load(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_certificate_that_becomes_no_file_holds_nobody_up(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    given = options(tmp_path / "in")
    files = CredentialFiles(given)
    before = files.current()
    put(kind, Path(given.cert_file))
    assert files.current() is before


def test_a_bundle_may_hold_several_authorities_and_comments(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes("# für Kunden\n".encode() + CA.pem + b"\nnext:\n" + Authority("other").pem)
    assert len(load(options(tmp_path, trusted_ca_file=str(bundle))).context.get_ca_certs()) == 2


def test_versions_and_suites(tmp_path: Path) -> None:
    context = load(options(tmp_path)).context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    old = load(options(tmp_path, max_version=ssl.TLSVersion.TLSv1_2)).context
    assert old.maximum_version is ssl.TLSVersion.TLSv1_2
    chosen = load(options(tmp_path, cipher_suites=("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",))).context
    tls12 = [each["name"] for each in chosen.get_ciphers() if each["protocol"] != "TLSv1.3"]
    assert tls12 == ["ECDHE-ECDSA-AES128-GCM-SHA256"]
    only_new = load(options(tmp_path, cipher_suites=("TLS_AES_128_GCM_SHA256",))).context
    assert only_new.minimum_version is ssl.TLSVersion.TLSv1_3


def test_no_session_tickets(tmp_path: Path) -> None:
    context = load(options(tmp_path)).context
    assert context.num_tickets == 0
    assert context.options & ssl.OP_NO_TICKET
    assert context.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.parametrize(
    ("field", "content", "said"),
    [
        ("cert_file", None, "--cert-file: open {}: no such file or directory"),
        ("key_file", None, "--key-file: open {}: no such file or directory"),
        ("cert_file", b"", "--cert-file: {}: tls: failed to find any PEM data in certificate input"),
        ("key_file", CA.pem, "--key-file: {}: tls: failed to find any PEM data in key input"),
        ("cert_file", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "{}"),
        ("cert_file", CA.pem, "private key does not match public key in {}"),
        ("trusted_ca_file", None, "--trusted-ca-file: open {}: no such file"),
        ("trusted_ca_file", b"nothing", "--trusted-ca-file: no certificates in {}"),
        ("trusted_ca_file", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot use {}"),
        ("client_crl_file", None, "--client-crl-file: open {}: no such file"),
        ("client_crl_file", b"nothing", "--client-crl-file: {}: malformed crl"),
    ],
)
def test_a_file_that_is_no_good_is_named_in_one_line(
    tmp_path: Path, field: str, content: bytes | None, said: str
) -> None:
    ca = str(CA.write(tmp_path / "ca.pem"))
    bad = tmp_path / "bad"
    if content is not None:
        bad.write_bytes(content)
    good = options(tmp_path, trusted_ca_file=ca)
    with pytest.raises(OptionError) as caught:
        load(TlsOptions(**{**good.__dict__, field: str(bad)}))
    assert said.format(bad) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "_ssl.c" not in str(caught.value)


def test_an_encrypted_key_is_an_error_and_not_a_question(tmp_path: Path) -> None:
    good = options(tmp_path)
    write_key(Path(good.key_file), ec.generate_private_key(ec.SECP256R1()), b"secret")
    with pytest.raises(OptionError, match="is encrypted"):
        load(good)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is a directory"):
        load(TlsOptions(cert_file=str(tmp_path), key_file=str(tmp_path)))


# --- changes ---


def test_the_context_stays_while_the_files_do(tmp_path: Path) -> None:
    files = CredentialFiles(options(tmp_path))
    assert files.current() is files.current()


@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.pem", "crl"])
def test_any_change_makes_new_credentials(tmp_path: Path, name: str) -> None:
    (tmp_path / "crl").write_bytes(CA.revoke([5]))
    ca = str(CA.write(tmp_path / "ca.pem"))
    files = CredentialFiles(options(tmp_path, trusted_ca_file=ca, client_crl_file=str(tmp_path / "crl")))
    before = files.current()
    assert before.revoked == {5}
    if name == "crl":
        (tmp_path / "crl").write_bytes(CA.revoke([5, 6]))
    else:
        os.utime(tmp_path / name, ns=(1, 1))
    after = files.current()
    assert after is not before
    assert after.revoked == ({5, 6} if name == "crl" else {5})
    assert files.current() is after


@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.pem", "crl"])
@pytest.mark.parametrize("content", [b"broken", None], ids=["broken", "gone"])
def test_files_that_break_are_said_once_and_the_old_ones_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes | None
) -> None:
    (tmp_path / "crl").write_bytes(CA.revoke([]))
    ca = str(CA.write(tmp_path / "ca.pem"))
    files = CredentialFiles(options(tmp_path, trusted_ca_file=ca, client_crl_file=str(tmp_path / "crl")))
    before = files.current()
    whole = (tmp_path / name).read_bytes()
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.INFO, "lessor"):
        assert files.current() is before
        assert files.current() is before
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(tmp_path / name) in str(caplog.records[0].__dict__["error"])
        (tmp_path / name).write_bytes(whole)
        assert files.current() is not before


def test_a_certificate_whose_key_comes_later(tmp_path: Path) -> None:
    """The two files cannot be replaced at the same moment; in between the old pair serves."""
    files = CredentialFiles(options(tmp_path))
    before = files.current()
    new = CA.issue(tmp_path / "new", "server")
    (tmp_path / "server.pem").write_bytes(new.certificate.read_bytes())
    assert files.current() is before
    (tmp_path / "server.key").write_bytes(new.key.read_bytes())
    assert files.current() is not before


# --- revocation lists ---


@given(st.lists(st.integers(min_value=1, max_value=2**159 - 1), unique=True, max_size=40))
def test_every_serial_number_on_a_list_is_found(serials: list[int]) -> None:
    der = CA.revoke(serials)
    assert revocation.revoked_serials(der) == set(serials)
    pem = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"
    assert revocation.revoked_serials(b"a list:\n" + pem) == set(serials)
    assert revocation.revoked_serials(pem + pem) == set(serials)


def test_several_lists_in_one_file_count_as_one() -> None:
    blocks = (base64.encodebytes(CA.revoke([serial])) for serial in (3, 4))
    content = b"".join(b"-----BEGIN X509 CRL-----\n" + block + b"-----END X509 CRL-----\n" for block in blocks)
    assert revocation.revoked_serials(content) == {3, 4}


@given(st.binary(max_size=200))
def test_what_is_no_list_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="malformed"):
        revocation.revoked_serials(content)


@given(st.data())
def test_a_damaged_list_never_does_worse_than_an_error(data: st.DataObject) -> None:
    der = bytearray(LIST)
    at = data.draw(st.integers(0, len(der) - 1))
    if data.draw(st.booleans()):
        der = der[:at]
    else:
        der[at] = data.draw(st.integers(0, 255))
    try:
        found = revocation.revoked_serials(bytes(der))
    except ValueError:
        return
    assert isinstance(found, frozenset)


@pytest.mark.parametrize("serial", [1, 127, 128, 2**64, 2**158 + 1])
def test_the_serial_number_of_a_certificate(tmp_path: Path, serial: int) -> None:
    pem = CA.issue(tmp_path, "a", serial=serial).certificate.read_text()
    assert revocation.serial_of(ssl.PEM_cert_to_DER_cert(pem)) == serial


@pytest.mark.parametrize("junk", [b"", b"\x30", b"\x30\x00", b"\x30\x84\xff\xff\xff\xff", b"\x30\x02\x02\x00"])
def test_no_certificate_has_no_serial_number(junk: bytes) -> None:
    with pytest.raises((ValueError, StopIteration)):
        revocation.serial_of(junk)


# --- names ---


@pytest.mark.parametrize(
    ("names", "host", "covered"),
    [
        ([("DNS", "a.example")], "a.example", True),
        ([("DNS", "A.Example")], "a.eXample", True),
        ([("DNS", "a.example")], "a.example.", True),
        ([("DNS", "a.example")], "b.example", False),
        ([("DNS", "b.example"), ("DNS", "a.example")], "a.example", True),
        ([("DNS", "*.example")], "a.example", True),
        ([("DNS", "*.example")], "a.b.example", False),
        ([("DNS", "*.example")], "example", False),
        ([("DNS", "a*.example")], "ab.example", False),
        ([("DNS", "*")], "a", False),
        ([("DNS", "*.b.example")], "a.*.example", False),
        ([("IP Address", "10.0.0.1")], "10.0.0.1", True),
        ([("IP Address", "10.0.0.1")], "10.0.0.2", False),
        ([("DNS", "10.0.0.1")], "10.0.0.1", False),
        ([("IP Address", "0:0:0:0:0:0:0:1")], "::1", True),
        ([("IP Address", "0:0:0:0:0:0:0:1")], "[::1]", True),
        ([("email", "a.example")], "a.example", False),
        ([], "a.example", False),
        ([("DNS", "")], "", False),
    ],
)
def test_which_names_cover_a_host(names: list[tuple[str, str]], host: str, covered: bool) -> None:
    assert peer.names_host(names, host) is covered


def test_the_common_name_that_counts() -> None:
    organisation, alice, bob = ("organizationName", "o"), ("commonName", "alice"), ("commonName", "bob")
    assert peer.common_name(((organisation,), (alice,))) == "alice"
    assert peer.common_name(((alice,), (bob,))) == "bob"
    assert peer.common_name(((alice, bob),)) == "bob"
    assert peer.common_name(((organisation,),)) is None
    assert peer.common_name(((("commonName", ""),),)) is None


# --- --auto-tls ---


def auto(tmp_path: Path, *urls: str) -> Options:
    listen = tuple(parse_listen_url(url) for url in urls or ("https://127.0.0.1:1", "https://db.example:1"))
    advertised = ("https://public.example:1",)
    tls = TlsOptions(auto=True, self_signed_validity_years=2)
    return Options(data_dir=str(tmp_path), listen_client_urls=listen, advertise_client_urls=advertised, tls=tls)


def test_a_certificate_is_made_once_where_etcd_makes_it(tmp_path: Path) -> None:
    certificate, key = map(Path, self_signed.files(auto(tmp_path)))
    assert certificate == tmp_path / "fixtures" / "client" / "cert.pem"
    assert key == tmp_path / "fixtures" / "client" / "key.pem"
    assert key.stat().st_mode & 0o077 == 0
    made = x509.load_pem_x509_certificate(certificate.read_bytes())
    alternative = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sorted(alternative.get_values_for_type(x509.DNSName)) == ["db.example", "public.example"]
    assert [str(address) for address in alternative.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert (made.not_valid_after_utc - made.not_valid_before_utc).days == 730
    before = certificate.read_bytes(), key.read_bytes()
    assert self_signed.files(auto(tmp_path)) == (str(certificate), str(key))
    assert (certificate.read_bytes(), key.read_bytes()) == before
    load(TlsOptions(cert_file=str(certificate), key_file=str(key)))
    client = ssl.create_default_context(cafile=str(certificate))
    assert len(client.get_ca_certs()) == 1


def test_an_expired_certificate_is_replaced(tmp_path: Path) -> None:
    certificate = Path(self_signed.files(auto(tmp_path))[0])
    certificate.write_bytes(_expired_authority())
    self_signed.files(auto(tmp_path))
    assert x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc > NOW


def test_a_certificate_that_somebody_put_there_is_not_touched(tmp_path: Path) -> None:
    certificate = Path(self_signed.files(auto(tmp_path))[0])
    certificate.write_bytes(b"nothing to read")
    self_signed.files(auto(tmp_path))
    assert certificate.read_bytes() == b"nothing to read"


def _expired_authority() -> bytes:
    builder = (
        x509.CertificateBuilder(CA.name, CA.name, CA.key.public_key(), 7)
        .not_valid_before(NOW - timedelta(days=9))
        .not_valid_after(NOW - timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return builder.sign(CA.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_without_the_extra_package_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(OptionError, match=r"pip install 'lessor\[auto-tls\]'"):
        self_signed.files(auto(tmp_path))
    assert not (tmp_path / "fixtures").exists()


def test_a_made_certificate_needs_the_package_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = self_signed.files(auto(tmp_path))
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert self_signed.files(auto(tmp_path)) == made


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "fixtures").write_text("a file")
    with pytest.raises(OptionError, match="cannot write the certificate"):
        self_signed.files(auto(tmp_path))


# --- what the listeners get ---


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_without_a_secure_url_no_file_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tls = TlsOptions(cert_file="not there", key_file="nor this", client_cert_auth=True)
    assert listeners.tls_for(Options(data_dir=str(tmp_path), tls=tls), Shortages()) is None
    said = warnings(caplog)
    assert said == [
        "scheme is http or unix while key and cert files are present; ignoring key and cert files",
        "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL",
    ]


def test_without_tls_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert listeners.tls_for(Options(data_dir=str(tmp_path)), Shortages()) is None
    assert caplog.records == []


def test_given_certificates_win_over_made_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = auto(tmp_path)
    given_ones = options(tmp_path, auto=True)
    listen = made.listen_client_urls
    assert (
        listeners.tls_for(Options(data_dir=str(tmp_path), listen_client_urls=listen, tls=given_ones), Shortages())
        is not None
    )
    assert warnings(caplog) == ["ignoring client auto TLS since certs given"]
    assert not (tmp_path / "fixtures").exists()
