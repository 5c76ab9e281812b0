"""Offline verification of an exported audit log (spec/audit.md; C2SP tlog-tiles, tlog-checkpoint, signed-note; RFC 6962, 2.1)."""

import base64
import binascii
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .errors import RotorError

TILE = 256  # entries of a full tile
_ORDER = ("action", "caller", "class", "detail", "key", "namespace", "outcome", "rule", "time", "writes")
_OPTIONAL = {"detail", "key", "namespace", "rule", "writes"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z")


@dataclass
class Report:
    """What a verification found. ``root`` is base64; ``open_windows`` counts windows of class 3 without a count."""

    origin: str
    size: int
    root: str
    by_class: Counter[int] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    open_windows: int = 0


def _broken(why: str) -> RotorError:
    return RotorError("audit_broken", why)


def leaf_hash(entry: bytes) -> bytes:
    """RFC 6962, 2.1: SHA-256(0x00 || entry)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_hash(leaves: list[bytes]) -> bytes:
    """The Merkle tree hash over leaf hashes (RFC 6962, 2.1)."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = leaves
    while len(level) > 1:  # joining neighbours and carrying the odd one up gives the tree of RFC 6962
        paired = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(level) & ~1 :]
    return level[0]


def tile_path(n: int, width: int) -> str:
    """The name of tile n: groups of three digits, and ``.p/<width>`` for a partial one (C2SP tlog-tiles)."""
    digits = f"{n:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    name = "/".join([f"x{g}" for g in groups[:-1]] + groups[-1:])
    return name if width == TILE else f"{name}.p/{width}"


def open_checkpoint(note: bytes, vkey: str) -> tuple[str, int, bytes]:
    """Origin, size and root of a checkpoint that the pinned key signed. ``invalid`` for the key, ``audit_broken``."""
    name, key_hash, public = _verifier(vkey)
    text, sep, signatures = note.rpartition(b"\n\n")
    if not sep or not signatures.endswith(b"\n"):
        raise _broken("checkpoint is malformed")
    text += b"\n"
    if not any(_signed(line, name, key_hash, public, text) for line in signatures[:-1].split(b"\n")):
        raise _broken("checkpoint is not signed by the pinned key")
    lines = text.decode(errors="replace").split("\n")
    if len(lines) != 4 or lines[0] != name or not re.fullmatch(r"0|[1-9][0-9]{0,17}", lines[1]):
        raise _broken("checkpoint is malformed")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except (binascii.Error, ValueError):
        raise _broken("checkpoint is malformed") from None
    if len(root) != 32:
        raise _broken("checkpoint is malformed")
    return lines[0], int(lines[1]), root


def _verifier(vkey: str) -> tuple[str, bytes, Ed25519PublicKey]:
    """A key in the form ``<name>+<hash>+<base64(0x01 || key)>`` (golang.org/x/mod/sumdb/note)."""
    try:
        name, hexed, body = vkey.strip().split("+", 2)
        raw = base64.b64decode(body, validate=True)
        want = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
        if not name or raw[:1] != b"\x01" or bytes.fromhex(hexed) != want:
            raise ValueError
        return name, want, Ed25519PublicKey.from_public_bytes(raw[1:])
    except (binascii.Error, ValueError):
        raise RotorError("invalid", "verifier key") from None


def _signed(line: bytes, name: str, key_hash: bytes, public: Ed25519PublicKey, text: bytes) -> bool:
    prefix = b"\xe2\x80\x94 " + name.encode() + b" "
    if not line.startswith(prefix):
        return False
    try:
        raw = base64.b64decode(line[len(prefix) :], validate=True)
        if raw[:4] != key_hash:
            return False
        public.verify(raw[4:], text)
    except (binascii.Error, ValueError, InvalidSignature):
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name is there twice")
    return out


def _escape(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def decode_entry(raw: bytes) -> dict[str, Any]:
    """An entry that is in its one encoding (spec/audit.md, "Entries"). ``audit_broken``."""
    try:
        entry = json.loads(raw.decode(), object_pairs_hook=_object)
        if not isinstance(entry, dict) or not _well_formed(entry) or _escape(entry).encode() != raw:
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise _broken("entry is not in its canonical encoding") from None
    return entry


def _well_formed(e: dict[str, Any]) -> bool:
    names = [n for n in _ORDER if n in e]
    if list(e) != names or not set(_ORDER) - _OPTIONAL <= set(e) or any(not e[n] for n in names if n in _OPTIONAL):
        return False
    if any(not isinstance(e[n], str) for n in ("action", "caller", "outcome", "key", "namespace", "rule", "time") if n in e):
        return False
    detail = e.get("detail", {})
    if not isinstance(detail, dict) or list(detail) != sorted(detail, key=str.encode):
        return False
    if not all(isinstance(v, str) for v in detail.values()):
        return False
    writes = e.get("writes", [])
    return type(e["class"]) is int and isinstance(writes, list) and bool(_TIME.fullmatch(e["time"])) and all(map(_write, writes))


def _write(w: Any) -> bool:
    return (
        isinstance(w, dict)
        and list(w) == ["counter", "path", "sha256"]
        and type(w["counter"]) is int
        and 0 <= w["counter"] < 1 << 64
        and isinstance(w["path"], str)
        and isinstance(w["sha256"], str)
    )


def verify(directory: str | Path, vkey: str) -> Report:
    """Verifies an export: the checkpoint's signature, every entry up to the signed root, each tile, the encoding of entries, and that
    the counters of every record go up by one.

    Args:
        directory: what ``rotor audit export`` made.
        vkey: the pinned checkpoint key, as ``rotor server init`` printed it. A key that came with the log proves nothing.

    Raises:
        RotorError: ``audit_broken`` with what does not fit, ``invalid`` for the key.
    """
    at = Path(directory)
    origin, size, root = open_checkpoint(_read(at / "checkpoint"), vkey)
    report = Report(origin, size, base64.b64encode(root).decode())
    leaves: list[bytes] = []
    counters: dict[str, int] = {}
    for first in range(0, size, TILE):
        width = min(TILE, size - first)
        for raw in _bundle(_read(at / "tile/entries" / tile_path(first // TILE, width)), width, first):
            _count(report, decode_entry(raw), len(leaves), counters)
            leaves.append(leaf_hash(raw))
    if root_hash(leaves) != root:
        raise _broken("the entries do not hash to the signed root")
    _check_tiles(at, leaves)
    return report


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise _broken(f"{path.name} cannot be read") from None


def _bundle(raw: bytes, width: int, first: int) -> list[bytes]:
    entries = []
    for i in range(width):
        n = int.from_bytes(raw[:2], "big")
        if len(raw) < 2 + n:
            raise _broken(f"entry {first + i} is cut off")
        entries.append(raw[2 : 2 + n])
        raw = raw[2 + n :]
    if raw:
        raise _broken(f"bytes after entry {first + width - 1}")
    return entries


def _count(r: Report, e: dict[str, Any], index: int, counters: dict[str, int]) -> None:
    r.by_class[e["class"]] += 1
    r.actions[e["action"]] += 1
    r.refused += e["outcome"] == "refused"
    r.open_windows += {"open": 1, "closed": -1}.get(e["outcome"], 0)
    for w in e.get("writes", []):
        if w["counter"] != counters.get(w["path"], 0) + 1:
            raise _broken(f"entry {index}: record {w['path']} goes from {counters.get(w['path'], 0)} to {w['counter']}")
        counters[w["path"]] = w["counter"]


def _check_tiles(at: Path, leaves: list[bytes]) -> None:
    hashes, level = leaves, 0
    while hashes:
        for first in range(0, len(hashes), TILE):
            tile = hashes[first : first + TILE]
            name = f"tile/{level}/{tile_path(first // TILE, len(tile))}"
            if _read(at / name) != b"".join(tile):
                raise _broken(f"{name} does not fit the entries")
        hashes = [root_hash(hashes[i : i + TILE]) for i in range(0, len(hashes) - TILE + 1, TILE)]
        level += 1
