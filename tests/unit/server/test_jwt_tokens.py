# SPDX-License-Identifier: Apache-2.0
"""JSON Web Tokens: every signing method, every way a token or a key file can be wrong."""

import builtins
import os
import sys
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from lessor.base.errors import EtcdError
from lessor.server.main import Server
from lessor.server.options import OptionError, Options, parse_auth_token
from lessor.server.services.jwt_tokens import JwtTokens
from lessor.state.permissions import Caller

NOW_S = 1_700_000_000


class Wall:
    def __init__(self) -> None:
        self.time_s: float = NOW_S

    def __call__(self) -> int:
        return int(self.time_s * 1000)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Key files by name; NAME.pub is the public half."""
    folder = tmp_path_factory.mktemp("keys")
    made: dict[str, Any] = {
        "rsa": rsa.generate_private_key(65537, 2048),
        "rsa2": rsa.generate_private_key(65537, 2048),
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "p521": ec.generate_private_key(ec.SECP521R1()),
        "ed": ed25519.Ed25519PrivateKey.generate(),
    }
    files = {}
    for name, key in made.items():
        files[name], files[f"{name}.pub"] = folder / name, folder / f"{name}.pub"
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        files[name].write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        files[f"{name}.pub"].write_bytes(key.public_key().public_bytes(pem, public))
    files["text"] = folder / "text"
    files["text"].write_text("no key")
    return files


METHODS = [
    *((method, "rsa") for method in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    *(("ES256", "p256"), ("ES384", "p384"), ("ES512", "p521"), ("EdDSA", "ed")),
]


def tokens_with(keys: dict[str, Path], wall: Wall | None = None, **settings: str) -> JwtTokens:
    named = {name.replace("_", "-"): str(keys.get(value, value)) for name, value in settings.items()}
    return JwtTokens(named, wall or Wall())


@pytest.mark.parametrize(("method", "key"), METHODS)
def test_every_method(keys: dict[str, Path], method: str, key: str) -> None:
    both = tokens_with(keys, sign_method=method, priv_key=key, pub_key=f"{key}.pub")
    token = both.issue("ann", 7)
    assert both.caller(token, 99) == Caller("ann", 7)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims == {"username": "ann", "revision": 7, "exp": NOW_S + 300}
    verifier = tokens_with(keys, sign_method=method, pub_key=f"{key}.pub")
    assert verifier.caller(token, 99) == Caller("ann", 7)
    with pytest.raises(EtcdError, match="verify-only key"):
        verifier.issue("ann", 7)
    signer = tokens_with(keys, sign_method=method, priv_key=key)
    assert signer.caller(token, 99) == Caller("ann", 7)


def test_a_token_ends(keys: dict[str, Path]) -> None:
    wall = Wall()
    tokens = tokens_with(keys, wall, sign_method="EdDSA", priv_key="ed", ttl="1m30s")
    token = tokens.issue("ann", 7)
    wall.time_s += 89.9
    assert tokens.caller(token, 7) is not None
    wall.time_s += 0.1
    assert tokens.caller(token, 7) is None


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"username": "ann", "revision": 1}, True),
        ({"username": "ann", "revision": 1.0, "aud": "x", "iat": NOW_S + 99, "sub": 5}, True),
        ({"username": "ann", "revision": 1, "nbf": NOW_S}, True),
        ({"username": "ann", "revision": 1, "nbf": NOW_S + 1}, False),
        ({"username": "ann", "revision": 1, "exp": NOW_S}, False),
        ({"username": "ann", "revision": 1, "exp": "soon"}, False),
        ({"username": 5, "revision": 1}, False),
        ({"revision": 1}, False),
        ({"username": "ann"}, False),
        ({"username": "ann", "revision": "1"}, False),
        ({"username": "ann", "revision": True}, False),
        ({"username": "ann", "revision": -1}, False),
        ({"username": "ann", "revision": float("inf")}, False),
    ],
)
def test_claims(keys: dict[str, Path], claims: dict[str, Any], good: bool) -> None:
    tokens = tokens_with(keys, sign_method="EdDSA", priv_key="ed")
    token = jwt.encode(claims, keys["ed"].read_bytes(), algorithm="EdDSA")
    assert (tokens.caller(token, 1) is not None) is good


def test_only_the_one_method_and_key_count(keys: dict[str, Path]) -> None:
    tokens = tokens_with(keys, sign_method="RS256", pub_key="rsa.pub")
    claims = {"username": "root", "revision": 1}
    other_key = jwt.encode(claims, keys["rsa2"].read_bytes(), algorithm="RS256")
    other_method = jwt.encode(claims, keys["rsa"].read_bytes(), algorithm="RS512")
    unsigned = jwt.encode(claims, "", algorithm="none")
    right = jwt.encode(claims, keys["rsa"].read_bytes(), algorithm="RS256")
    head, body, signature = right.split(".")
    # The old trick: HMAC, with the public key as the secret.
    import base64
    import hashlib
    import hmac

    hs_head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    mac = hmac.new(keys["rsa.pub"].read_bytes(), f"{hs_head}.{body}".encode(), hashlib.sha256).digest()
    confused = f"{hs_head}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    cut = f"{head}.{body}.{signature[:-4]}"
    for token in (other_key, other_method, unsigned, confused, cut, f"{head}.{body}", "x", "", "a.b.c", "é.é.é"):
        assert tokens.caller(token, 1) is None
    assert tokens.caller(right, 1) == Caller("root", 1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "choose one of RS256"),
        ({"sign_method": "HS256", "priv_key": "text"}, "choose one of RS256"),
        ({"sign_method": "RS256"}, "needs a key"),
        ({"sign_method": "RS256", "priv_key": "/nowhere/key"}, "priv-key: /nowhere/key: No such file"),
        ({"sign_method": "RS256", "pub_key": "text"}, "is not a PEM file"),
        ({"sign_method": "RS256", "priv_key": "rsa.pub"}, "is not a PEM file"),
        ({"sign_method": "RS256", "priv_key": "p256"}, "is not one for RS256"),
        ({"sign_method": "ES256", "pub_key": "rsa.pub"}, "is not one for ES256"),
        ({"sign_method": "ES256", "priv_key": "p384"}, "is not one for ES256"),
        ({"sign_method": "EdDSA", "priv_key": "p256"}, "is not one for EdDSA"),
        ({"sign_method": "RS256", "priv_key": "rsa", "pub_key": "rsa2.pub"}, "do not belong together"),
        ({"sign_method": "RS256", "priv_key": "rsa", "ttl": "5"}, "ttl: '5' is not a duration"),
        ({"sign_method": "RS256", "priv_key": "rsa", "ttl": "0s"}, "ttl must be more than 0"),
        ({"sign_method": "RS256", "priv_key": "rsa", "colour": "red"}, "'colour' is not a setting"),
    ],
)
def test_bad_settings_say_what_is_wrong_in_one_line(keys: dict[str, Path], settings: dict[str, str], says: str) -> None:
    with pytest.raises(OptionError) as raised:
        tokens_with(keys, None, **settings)
    text = str(raised.value)
    assert text.startswith("--auth-token: ")
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize("setting", ["priv_key", "pub_key"])
def test_a_key_that_is_a_fifo_is_refused_and_not_waited_for(
    keys: dict[str, Path], tmp_path: Path, setting: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match=r"pipe: it is a FIFO, not a file$"):
        tokens_with(keys, None, sign_method="RS256", **{setting: str(tmp_path / "pipe")})


def test_the_option() -> None:
    assert parse_auth_token("simple") == ("simple", {})
    assert parse_auth_token("jwt,sign-method=RS256,ttl=5m") == ("jwt", {"sign-method": "RS256", "ttl": "5m"})
    for bad in ("", "opaque", "jwt,", "jwt,ttl", "jwt,ttl=", "jwt,ttl=1m,ttl=2m", "jwt,ttl=1m=2m"):
        with pytest.raises(OptionError, match="--auth-token"):
            parse_auth_token(bad)


def test_without_the_extra_the_server_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lessor.server.services.jwt_tokens")
    real_import = builtins.__import__

    def without_jwt(name: str, *rest: Any) -> Any:
        if name == "jwt":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_jwt)
    with pytest.raises(OptionError, match=r"pip install 'lessor\[jwt\]'"):
        Server(Options(data_dir=str(tmp_path / "data"), auth_token="jwt,sign-method=RS256,priv-key=x"))
    assert not (tmp_path / "data").exists()
