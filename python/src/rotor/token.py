"""Verification of rotor's access tokens against a published key set (spec/token.md; RFC 7515, 7517, 7518, 8037, 9068)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from .errors import RotorError
from .message import unbase64url

MAX_TOKEN = 8 << 10
MAX_SET = 1 << 20
MAX_KEYS = 1024

PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True)
class Key:
    """A published key: its ``kid``, the one ``alg`` that it is for, and the public key."""

    kid: str
    alg: str
    public: PublicKey


@dataclass(frozen=True)
class Claims:
    """The claims of a token (RFC 9068, 2.2). Times are whole seconds since 1970."""

    iss: str
    sub: str
    aud: str
    iat: int
    nbf: int
    exp: int
    jti: str
    scope: str = ""


def parse_jwks(document: bytes) -> dict[str, Key]:
    """Reads a key set; keys of algorithms that rotor does not use are left out. ``invalid``, ``too_large``."""
    if len(document) > MAX_SET:
        raise RotorError("too_large", "JWKS")
    try:
        keys = json.loads(document)["keys"]
        if not isinstance(keys, list):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RotorError("invalid", "JWKS") from None
    if len(keys) > MAX_KEYS:
        raise RotorError("too_large", "JWKS")
    found: dict[str, Key] = {}
    for k in keys:
        try:
            key = Key(_text(k, "kid"), _text(k, "alg"), _public(k))
        except (KeyError, TypeError, ValueError):
            continue
        if not key.kid or k.get("use", "sig") not in ("", "sig") or "d" in k:
            continue
        if key.kid in found:
            raise RotorError("invalid", "JWKS: two keys have one kid")
        found[key.kid] = key
    return found


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: a name that stands twice is refused (RFC 7515, 4; RFC 7519, 4)."""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name stands twice")
    return out


def _text(m: Mapping[str, Any], name: str) -> str:
    if not isinstance(m[name], str):
        raise TypeError
    return str(m[name])


def _seconds(m: Mapping[str, Any], name: str) -> int:
    if type(m[name]) is not int:
        raise TypeError
    return int(m[name])


def _bytes(m: Mapping[str, Any], name: str) -> bytes:
    b = unbase64url(_text(m, name))
    if b is None:
        raise ValueError
    return b


def _public(k: Mapping[str, Any]) -> PublicKey:
    match (_text(k, "kty"), _text(k, "alg"), k.get("crv")):
        case ("OKP", "EdDSA", "Ed25519"):
            return ed25519.Ed25519PublicKey.from_public_bytes(_bytes(k, "x"))
        case ("EC", "ES256", "P-256"):
            return _point(k, ec.SECP256R1(), 32)
        case ("EC", "ES384", "P-384"):
            return _point(k, ec.SECP384R1(), 48)
        case ("RSA", "RS256", None):
            n, e = (int.from_bytes(_bytes(k, f), "big") for f in ("n", "e"))
            if not 2048 <= n.bit_length() <= 8192:
                raise ValueError
            return rsa.RSAPublicNumbers(e, n).public_key()
    raise ValueError


def _point(k: Mapping[str, Any], curve: ec.EllipticCurve, size: int) -> ec.EllipticCurvePublicKey:
    x, y = _bytes(k, "x"), _bytes(k, "y")
    if len(x) != size or len(y) != size:
        raise ValueError
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + x + y)


def key_id(token: str) -> str:
    """The ``kid`` of a token, before anything is verified. ``token_invalid``."""
    return str(_split(token)[0]["kid"])


def verify(token: str, keys: Mapping[str, Key], *, issuer: str, audience: str, now: float, leeway: float = 0) -> Claims:
    """Checks a token and returns its claims.

    Args:
        keys: of parse_jwks.
        now: seconds since 1970.
        leeway: seconds that the clocks may differ by.

    Raises:
        RotorError: ``token_invalid``, ``unknown_key_id``, ``token_algorithm``, ``token_expired``, ``token_not_yet_valid``,
            ``token_audience``, in this order of checks.
    """
    header, body, signed, signature = _split(token)
    key = keys.get(header["kid"])
    if key is None:
        raise RotorError("unknown_key_id", "token")
    if header["alg"] != key.alg:
        raise RotorError("token_algorithm", "token")
    if not _signed(key, signed, signature):
        raise RotorError("token_invalid", "token")
    claims = _claims(body)
    if now - leeway >= claims.exp:
        raise RotorError("token_expired", "token")
    if now + leeway < claims.nbf:
        raise RotorError("token_not_yet_valid", "token")
    if not audience or claims.aud != audience:
        raise RotorError("token_audience", "token")
    if claims.iss != issuer:
        raise RotorError("token_invalid", "token")
    return claims


def _split(token: str) -> tuple[dict[str, str], str, bytes, bytes]:
    bad = RotorError("token_invalid", "token")
    parts = token.split(".")
    if len(token) > MAX_TOKEN or len(parts) != 3:
        raise bad
    raw, signature = unbase64url(parts[0]), unbase64url(parts[2])
    if raw is None or signature is None:
        raise bad
    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise bad from None
    if not isinstance(header, dict) or set(header) != {"alg", "typ", "kid"} or not all(isinstance(v, str) for v in header.values()):
        raise bad
    if header["typ"] != "at+jwt":
        raise bad
    return header, parts[1], f"{parts[0]}.{parts[1]}".encode(), signature


def _signed(key: Key, message: bytes, signature: bytes) -> bool:
    try:
        match key.public:
            case ed25519.Ed25519PublicKey() as p:
                p.verify(signature, message)
            case rsa.RSAPublicKey() as p:
                p.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
            case ec.EllipticCurvePublicKey() as p:
                n = (p.key_size + 7) // 8
                if len(signature) != 2 * n:
                    return False
                der = encode_dss_signature(int.from_bytes(signature[:n], "big"), int.from_bytes(signature[n:], "big"))
                p.verify(der, message, ec.ECDSA(hashes.SHA384() if key.alg == "ES384" else hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _claims(body: str) -> Claims:
    raw = unbase64url(body)
    try:
        c = json.loads(raw or b"", object_pairs_hook=unique)
        iat, nbf, exp = (_seconds(c, n) for n in ("iat", "nbf", "exp"))
        iss, sub, aud, jti = (_text(c, n) for n in ("iss", "sub", "aud", "jti"))
        return Claims(iss, sub, aud, iat=iat, nbf=nbf, exp=exp, jti=jti, scope=_text(c, "scope") if "scope" in c else "")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RotorError("token_invalid", "token") from None
