# SPDX-License-Identifier: Apache-2.0
"""JSON Web Tokens: each names its user, its end, and the revision of the auth data at which it was issued.

Laws
- Only tokens signed with the one method and key that the server was started with count.
- A token cannot be revoked. Instead it holds only for the auth revision at which it was issued: once the auth data has
  changed, requests on keys are refused with "revision of auth store is old".
- A server with only a public key checks tokens and issues none.

    --auth-token jwt,sign-method=RS256,pub-key=app.pub.pem,priv-key=app.pem,ttl=5m

Imported only when the option asks for it: it needs the `jwt` extra.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lessor.base import errors
from lessor.durable.file_kind import read_regular
from lessor.server.options import OptionError, parse_duration_s
from lessor.state.permissions import Caller

try:
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
except ImportError:
    raise OptionError("--auth-token: JWT needs more packages: pip install 'lessor[jwt]'") from None

DEFAULT_TTL_S = 300.0

# By sign-method: the kinds of private and public key that go with it, and the curve of the elliptic ones.
_RSA: tuple[Any, Any, str] = (rsa.RSAPrivateKey, rsa.RSAPublicKey, "")
_METHODS: dict[str, tuple[Any, Any, str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), _RSA),
    "ES256": (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey, "secp256r1"),
    "ES384": (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey, "secp384r1"),
    "ES512": (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey, "secp521r1"),
    "EdDSA": (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey, ""),
}


class JwtTokens:
    """Issues and checks JWTs. Holds no tokens."""

    def __init__(self, settings: dict[str, str], wall_clock_ms: Callable[[], int]) -> None:
        """`settings`: those that follow "jwt" in --auth-token. Raises OptionError."""
        unknown = set(settings) - {"sign-method", "pub-key", "priv-key", "ttl"}
        if unknown:
            raise OptionError(f"--auth-token: {min(unknown)!r} is not a setting of jwt")
        self._method = settings.get("sign-method", "")
        if self._method not in _METHODS:
            raise OptionError(f"--auth-token: sign-method {self._method!r}; choose one of {', '.join(_METHODS)}")
        try:
            self._ttl_s = parse_duration_s(settings["ttl"]) if "ttl" in settings else DEFAULT_TTL_S
        except ValueError as error:
            raise OptionError(f"--auth-token: ttl: {error}") from None
        if self._ttl_s <= 0:
            raise OptionError("--auth-token: ttl must be more than 0")
        self._wall_clock_ms = wall_clock_ms
        self._private, self._public = _keys(self._method, settings)

    def issue(self, name: str, revision: int) -> str:
        if self._private is None:
            raise errors.VERIFY_ONLY_KEY.error()
        claims = {"username": name, "revision": revision, "exp": int(self._wall_clock_ms() / 1000 + self._ttl_s)}
        return jwt.encode(claims, self._private, algorithm=self._method)

    def caller(self, token: str, revision: int) -> Caller | None:
        # The times are checked below, by our clock; other claims mean nothing to us.
        ignored = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}
        try:
            claims = jwt.decode(token, self._public, algorithms=[self._method], options=ignored)  # type: ignore[arg-type]
        except jwt.PyJWTError:
            return None
        now_s = self._wall_clock_ms() / 1000
        name = claims.get("username")
        issued_at: Any = claims.get("revision")
        if not isinstance(name, str) or not _is_number(issued_at) or not 0 <= issued_at < 1 << 63:
            return None
        end_s, start_s = claims.get("exp"), claims.get("nbf")
        if end_s is not None and not (_is_number(end_s) and now_s < end_s):
            return None
        if start_s is not None and not (_is_number(start_s) and now_s >= start_s):
            return None
        return Caller(name, int(issued_at))

    def forget_user(self, name: str) -> None: ...

    def forget_all(self) -> None: ...


def _is_number(claim: object) -> bool:
    return isinstance(claim, (int, float)) and not isinstance(claim, bool)


def _keys(method: str, settings: dict[str, str]) -> tuple[Any, Any]:
    """The private key, or None, and the public key. Raises OptionError for a file that does not hold such a key."""
    private_kind, public_kind, curve = _METHODS[method]
    private = public = None
    if "priv-key" in settings:
        private = _load("priv-key", settings["priv-key"], lambda pem: serialization.load_pem_private_key(pem, None))
        _expect(private, private_kind, curve, "priv-key", settings["priv-key"], method)
    if "pub-key" in settings:
        public = _load("pub-key", settings["pub-key"], _load_public)
        _expect(public, public_kind, curve, "pub-key", settings["pub-key"], method)
    if private is None and public is None:
        raise OptionError("--auth-token: jwt needs a key: add priv-key=FILE, or pub-key=FILE to check tokens only")
    if private is not None:
        derived = private.public_key()
        if public is not None and public != derived:
            raise OptionError("--auth-token: pub-key and priv-key do not belong together")
        public = derived
    return private, public


def _load(setting: str, path: str, read: Callable[[bytes], Any]) -> Any:
    try:
        return read(read_regular(Path(path)))
    except OSError as error:
        raise OptionError(f"--auth-token: {setting}: {path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise OptionError(f"--auth-token: {setting}: {path} is not a PEM file with an unencrypted key") from None
    except Exception as error:  # a key of a kind that the cryptography library does not know
        raise OptionError(f"--auth-token: {setting}: {path}: {error}") from None


def _load_public(pem: bytes) -> Any:
    """The public key in a PEM file, which may be a certificate."""
    if b"CERTIFICATE" in pem:
        from cryptography import x509

        return x509.load_pem_x509_certificate(pem).public_key()
    return serialization.load_pem_public_key(pem)


def _expect(key: Any, kind: Any, curve: str, setting: str, path: str, method: str) -> None:
    if not isinstance(key, kind) or (curve and key.curve.name != curve):
        raise OptionError(f"--auth-token: {setting}: the key in {path} is not one for {method}")
