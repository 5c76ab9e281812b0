"""Encrypted files: header with two slots of wraps, and a payload of Cobblestone-256 (spec/file.md; C2SP chunked-encryption) or FLOE.

Streams are encrypted and decrypted by ``cryptography.cobblestone``; random access and ``write`` with a given salt build the same
construction from HKDF-Expand and AES-256-GCM, so that the two check each other.
"""

import fcntl
import hashlib
import hmac
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from . import _floe
from ._fields import Reader
from ._fields import field as _field
from ._xaes import NONCE_SIZE, TAG_SIZE, XAES
from .errors import RotorError

MAGIC = b"rotorfile\x00v1\n"
PRELUDE = len(MAGIC) + 4 + 32
SLOT = 12 << 10
SLOT_HEADER = 16
MAX_IMMUTABLE = 16 << 10
MAX_CONTEXT = 64
MAX_WRAPS = 64
MAX_BLOB = 4 << 10
MAX_TIME = 253402300799  # the end of the year 9999, in seconds
SUITE = 1  # Cobblestone-256
SUITE_FLOE = 2  # what files are that were made in FIPS mode
CHUNK = 16 << 10
FRONT = 24 + 32  # salt and commitment of a payload
DEK_SIZE = 32

WRAP_KMS = 1
WRAP_KEY_FILE = 2
XAES_256_GCM = "XAES-256-GCM"


@dataclass(frozen=True)
class Immutable:
    """The part of a header that never changes. The encryption context is readable by all and bound to the data."""

    file_id: bytes
    content_type: str = ""
    context: Mapping[str, str] = field(default_factory=dict)
    suite: int = SUITE

    def encode(self) -> bytes:
        """The one encoding. ``too_large``."""
        pairs = sorted((k.encode(), v.encode()) for k, v in self.context.items())
        raw = bytes([self.suite]) + self.file_id + _field(self.content_type.encode()) + len(pairs).to_bytes(4, "big")
        raw += b"".join(_field(k) + _field(v) for k, v in pairs)
        if len(self.file_id) != 16:
            raise RotorError("invalid", "file id")
        if self.suite not in (SUITE, SUITE_FLOE):
            raise RotorError("invalid", "suite")
        if len(raw) > MAX_IMMUTABLE or len(pairs) > MAX_CONTEXT:
            raise RotorError("too_large", "encryption context")
        return raw


def parse_immutable(raw: bytes) -> Immutable:
    """Reads an immutable part strictly. ``malformed_file``."""
    try:
        if len(raw) > MAX_IMMUTABLE:
            raise ValueError
        r = Reader(raw)
        suite, file_id = r.number(1), r.take(16)
        content_type, count = r.field().decode(), r.number()
        if suite not in (SUITE, SUITE_FLOE) or count > MAX_CONTEXT:
            raise ValueError
        pairs = [(r.field(), r.field()) for _ in range(count)]
        r.end()
        if any(a[0] >= b[0] for a, b in zip(pairs, pairs[1:], strict=False)):
            raise ValueError
        return Immutable(file_id, content_type, {k.decode(): v.decode() for k, v in pairs}, suite)
    except ValueError:
        raise RotorError("malformed_file", "header") from None


@dataclass(frozen=True)
class Wrap:
    """A data key under one key.

    Attributes:
        type: WRAP_KMS or WRAP_KEY_FILE.
        key_id, version: of the key that wraps.
        protect_time: seconds since 1970 when the data was protected; a rewrap keeps it.
        blob: nonce 24, ciphertext 32, tag 16.
    """

    type: int
    key_id: str
    version: int
    protect_time: int
    blob: bytes = b""
    algorithm: str = XAES_256_GCM

    def encode(self, blob: bytes) -> bytes:
        raw = bytes([self.type]) + _field(self.key_id.encode()) + self.version.to_bytes(4, "big") + _field(self.algorithm.encode())
        return raw + self.protect_time.to_bytes(8, "big") + _field(blob)

    def associated_data(self, immutable: bytes) -> bytes:
        """What the blob is bound to: all of the wrap but the blob, the file's ID and the hash of its immutable part."""
        file_id = parse_immutable(immutable).file_id
        return _field(b"rotor/wrap/1") + self.encode(b"") + _field(file_id) + _field(hashlib.sha256(immutable).digest())


def seal_dek(key: bytes, wrap: Wrap, immutable: bytes, dek: bytes, *, nonce: bytes | None = None) -> Wrap:
    """The wrap with a blob that holds the data key (32 bytes) under a key (32 bytes). Give a nonce to reproduce vectors only."""
    if len(dek) != DEK_SIZE:
        raise RotorError("invalid", "data key")
    nonce = os.urandom(NONCE_SIZE) if nonce is None else nonce
    return replace(wrap, blob=nonce + XAES(key).seal(nonce, dek, wrap.associated_data(immutable)))


def open_dek(key: bytes, wrap: Wrap, immutable: bytes) -> bytes:
    """The data key. ``decrypt_failed``."""
    try:
        if len(wrap.blob) != NONCE_SIZE + DEK_SIZE + TAG_SIZE:
            raise InvalidTag
        return XAES(key).open(wrap.blob[:NONCE_SIZE], wrap.blob[NONCE_SIZE:], wrap.associated_data(immutable))
    except InvalidTag:
        raise RotorError("decrypt_failed", "data key") from None


def _crc_table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli; RFC 3720, B.4)."""
    crc = 0xFFFFFFFF
    for b in data:
        crc = _CRC[(crc ^ b) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def encode_slot(generation: int, wraps: Sequence[Wrap]) -> bytes:
    """A slot of 12 KiB. ``invalid``, ``too_large``."""
    if not 1 <= len(wraps) <= MAX_WRAPS or any(len(w.blob) > MAX_BLOB or not 0 <= w.protect_time <= MAX_TIME for w in wraps):
        raise RotorError("invalid", "wrap table")
    body = len(wraps).to_bytes(4, "big") + b"".join(w.encode(w.blob) for w in wraps)
    if len(body) > SLOT - SLOT_HEADER:
        raise RotorError("too_large", "wrap table")
    rest = (generation.to_bytes(8, "big") + len(body).to_bytes(4, "big") + body).ljust(SLOT - 4, b"\0")
    return crc32c(rest).to_bytes(4, "big") + rest


def parse_slot(raw: bytes) -> tuple[int, list[Wrap]] | None:
    """Generation and wraps; None for a slot that is torn."""
    try:
        if len(raw) != SLOT or int.from_bytes(raw[:4], "big") != crc32c(raw[4:]):
            return None
        generation, length = int.from_bytes(raw[4:12], "big"), int.from_bytes(raw[12:16], "big")
        if length > SLOT - SLOT_HEADER or any(raw[SLOT_HEADER + length :]):
            return None
        r = Reader(raw[SLOT_HEADER : SLOT_HEADER + length])
        count = r.number()
        if not 1 <= count <= MAX_WRAPS:
            return None
        wraps = [_wrap(r) for _ in range(count)]
        r.end()
        return generation, wraps
    except ValueError:
        return None


def _wrap(r: Reader) -> Wrap:
    kind, key_id, version, algorithm = r.number(1), r.field().decode(), r.number(), r.field().decode()
    protect_time, blob = r.number(8), r.field()
    if len(blob) > MAX_BLOB or protect_time > MAX_TIME:
        raise ValueError
    return Wrap(kind, key_id, version, protect_time, blob, algorithm)


@dataclass(frozen=True)
class Header:
    """A parsed header.

    Attributes:
        raw: the immutable part as it stands in the file.
        wraps, generation: of the newest slot that is whole.
        slots: wraps of both; None for a torn one.
        newest: 0 or 1.
        payload: where the payload begins, in bytes.
    """

    immutable: Immutable
    raw: bytes
    wraps: list[Wrap]
    generation: int
    slots: tuple[list[Wrap] | None, list[Wrap] | None]
    newest: int
    payload: int


def _take(src: BinaryIO, n: int) -> bytes:
    out = b""
    while len(out) < n:
        more = src.read(n - len(out))
        if not more:
            raise RotorError("truncated_file", "file")
        out += more
    return out


def read_header(src: BinaryIO) -> Header:
    """Reads the header from the beginning of a stream. ``malformed_file``, ``truncated_file``."""
    prelude = _take(src, PRELUDE)
    n = int.from_bytes(prelude[len(MAGIC) : len(MAGIC) + 4], "big")
    if not prelude.startswith(MAGIC) or n > MAX_IMMUTABLE:
        raise RotorError("malformed_file", "file")
    raw = _take(src, n)
    if hashlib.sha256(raw).digest() != prelude[-32:]:
        raise RotorError("malformed_file", "header")
    slots = _take(src, 2 * SLOT)
    immutable = parse_immutable(raw)
    a, b = parse_slot(slots[:SLOT]), parse_slot(slots[SLOT:])
    if a is None and b is None:
        raise RotorError("malformed_file", "header: both slots are damaged")
    newest = 1 if a is None or (b is not None and b[0] > a[0]) else 0
    chosen = b if newest else a
    if chosen is None:  # cannot be: one of them is whole
        raise RotorError("malformed_file", "header")
    both = (a[1] if a else None, b[1] if b else None)
    return Header(immutable, raw, chosen[1], chosen[0], both, newest, PRELUDE + n + 2 * SLOT)


def encode_header(raw: bytes, wraps: Sequence[Wrap]) -> bytes:
    """A fresh header: both slots hold the first table."""
    slot = encode_slot(1, wraps)
    return MAGIC + len(raw).to_bytes(4, "big") + hashlib.sha256(raw).digest() + raw + slot + slot


def payload_context(raw: bytes, part: int = 0) -> bytes:
    """The context of the payload's key derivation. Version 0.1 has files of one part, number 0."""
    return hashlib.sha256(raw).digest() + part.to_bytes(4, "big")


class Chunks:
    """The chunks of one payload, from primitives (C2SP chunked-encryption v1 with SHA-512 and AEAD_AES_256_GCM)."""

    def __init__(self, dek: bytes, salt: bytes, raw: bytes) -> None:
        info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + salt + payload_context(raw)
        out = HKDFExpand(SHA512(), 32 + 12 + 32, info).derive(dek)
        self._aead = AESGCM(out[:32])
        self._base = int.from_bytes(out[32:44], "big")
        self.commitment = out[44:]

    def _nonce(self, n: int) -> bytes:
        return (self._base ^ n).to_bytes(12, "big")

    def seal(self, n: int, plain: bytes) -> bytes:
        return self._aead.encrypt(self._nonce(n), plain, None)

    def open(self, n: int, sealed: bytes) -> bytes:
        try:
            return self._aead.decrypt(self._nonce(n), sealed, None)
        except (InvalidTag, ValueError):
            raise RotorError("decrypt_failed", f"chunk {n} of the file") from None


def plain_size(payload: int, suite: int = SUITE) -> int:
    """The length of the plaintext of a payload of so many bytes. ``truncated_file`` for a length that no payload has."""
    front, overhead = _layout(suite)
    full, rest = divmod(payload - front, CHUNK + overhead)
    if payload < front + overhead or rest < overhead or full >= 1 << 38:
        raise RotorError("truncated_file", "file")
    return full * CHUNK + rest - overhead


def _layout(suite: int) -> tuple[int, int]:
    """Length of a payload's front, and what a sealed chunk has more than its plaintext."""
    return (_floe.FRONT, _floe.OVERHEAD) if suite == SUITE_FLOE else (FRONT, TAG_SIZE)


Unwrapper = Callable[[Wrap, bytes], bytes | None]
"""Opens a wrap, given the immutable part too; None for a wrap that it does not know."""


def key_file(key: bytes, key_id: str, version: int | None = None) -> Unwrapper:
    """Opens wraps of one key from its 32 bytes."""

    def unwrap(w: Wrap, raw: bytes) -> bytes | None:
        if w.key_id != key_id or w.algorithm != XAES_256_GCM or (version is not None and w.version != version):
            return None
        return open_dek(key, w, raw)

    return unwrap


def _unwrap(h: Header, unwrapper: Unwrapper) -> bytes:
    first = None
    for w in h.wraps:
        try:
            dek = unwrapper(w, h.raw)
            if dek is not None and len(dek) == DEK_SIZE:
                return dek
        except RotorError as e:
            first = first or e
        else:
            if dek is not None:
                first = first or RotorError("decrypt_failed", "data key")
    raise first or RotorError("not_found", "key of the file")


Wrapper = Callable[[bytes, bytes], Wrap]
"""Wraps a data key; takes the key and the immutable part."""


def write(
    dst: BinaryIO,
    src: BinaryIO,
    wrappers: Sequence[Wrapper],
    *,
    content_type: str = "",
    context: Mapping[str, str] | None = None,
    file_id: bytes | None = None,
    floe: bool = False,
) -> None:
    """Encrypts a stream with a fresh data key, with FLOE in the place of Cobblestone-256 if asked. What is written is a file only when
    the call returned. ``too_large``, ``invalid``."""
    suite = SUITE_FLOE if floe else SUITE
    raw = Immutable(os.urandom(16) if file_id is None else file_id, content_type, dict(context or {}), suite).encode()
    dek = os.urandom(DEK_SIZE)
    dst.write(encode_header(raw, [w(dek, raw) for w in wrappers]))
    if floe:
        _write_floe(dst, src, _floe.Floe(dek, os.urandom(_floe.IV), payload_context(raw)))
        return
    e = Cobblestone256Encryptor(dek, context=payload_context(raw))
    while block := src.read(1 << 20):
        dst.write(e.update(block))
    dst.write(e.finalize())


def _write_floe(dst: BinaryIO, src: BinaryIO, f: _floe.Floe) -> None:
    dst.write(f.front)
    n, last = 0, False
    while not last:
        plain = _up_to(src, CHUNK)
        last = len(plain) < CHUNK
        dst.write(f.seal(n, plain, last))
        n += 1


def _up_to(src: BinaryIO, n: int) -> bytes:
    """n bytes, fewer at the end alone."""
    out = b""
    while len(out) < n and (more := src.read(n - len(out))):
        out += more
    return out


def write_file(path: str | Path, src: BinaryIO, wrappers: Sequence[Wrapper], *, force: bool = False, **options: object) -> None:
    """Like write, into a new file that appears whole and durable or not at all. ``exists`` without force."""
    path = Path(path)
    if path.is_symlink() or path.exists():
        if not force:
            raise RotorError("exists", str(path))
    fd, name = tempfile.mkstemp(prefix=".rotor-", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as out:
            write(out, src, wrappers, **options)  # type: ignore[arg-type]
            out.flush()
            os.fsync(out.fileno())
        if force:
            os.replace(name, path)
        else:
            os.link(name, path)
    except FileExistsError:
        raise RotorError("exists", str(path)) from None
    finally:
        Path(name).unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def decrypt(src: BinaryIO, unwrapper: Unwrapper) -> Iterator[bytes]:
    """Decrypts a stream as it comes; every block that is yielded has been verified, and the end is only good when the iterator ends
    without an error. ``malformed_file``, ``truncated_file``, ``decrypt_failed``, ``not_found``."""
    h = read_header(src)
    if h.immutable.suite == SUITE_FLOE:
        yield from _decrypt_floe(src, _unwrap(h, unwrapper), h.raw)
        return
    d = Cobblestone256Decryptor(_unwrap(h, unwrapper), context=payload_context(h.raw))
    size = 0
    try:
        while block := src.read(1 << 20):
            size += len(block)
            yield d.update(block)
        plain_size(size)
        yield d.finalize()
    except InvalidTag:
        raise RotorError("decrypt_failed", "stream") from None


def _decrypt_floe(src: BinaryIO, dek: bytes, raw: bytes) -> Iterator[bytes]:
    f = _floe.Floe.opened(dek, _take(src, _floe.FRONT), payload_context(raw))
    n, last = 0, False
    while not last:
        sealed = _up_to(src, _floe.SEGMENT)
        if len(sealed) < _floe.OVERHEAD:
            raise RotorError("truncated_file", "stream")
        last = len(sealed) < _floe.SEGMENT
        yield f.open(n, sealed, last)
        n += 1


class File:
    """An encrypted file that is open for reading at any place. Not safe for concurrent use.

    Args:
        src: seekable. The last chunk is verified before the constructor returns, so that a truncated file is found then.
    """

    def __init__(self, src: BinaryIO, unwrapper: Unwrapper) -> None:
        size = src.seek(0, io.SEEK_END)
        src.seek(0)
        self._src = src
        self.header = read_header(src)
        suite = self.header.immutable.suite
        self._front, self._overhead = _layout(suite)
        self.size = plain_size(size - self.header.payload, suite)
        front, dek = _take(src, self._front), _unwrap(self.header, unwrapper)
        self._open: Callable[[int, bytes, bool], bytes]
        if suite == SUITE_FLOE:
            self._open = _floe.Floe.opened(dek, front, payload_context(self.header.raw)).open
        else:
            chunks = Chunks(dek, front[:24], self.header.raw)
            if not hmac.compare_digest(chunks.commitment, front[24:]):
                raise RotorError("decrypt_failed", "file")
            self._open = lambda n, sealed, _: chunks.open(n, sealed)
        self._chunk(self.size // CHUNK)

    def _chunk(self, n: int) -> bytes:
        self._src.seek(self.header.payload + self._front + n * (CHUNK + self._overhead))
        sealed = _take(self._src, min(CHUNK, self.size - n * CHUNK) + self._overhead)
        return self._open(n, sealed, n == self.size // CHUNK)

    def read_at(self, offset: int, n: int) -> bytes:
        """Up to n bytes of plaintext from an offset, fewer at the end. Nothing unverified is returned."""
        if offset < 0 or n < 0:
            raise RotorError("invalid", "offset")
        end, out = min(offset + n, self.size), b""
        while offset < end:
            plain = self._chunk(offset // CHUNK)[offset % CHUNK :][: end - offset]
            out, offset = out + plain, offset + len(plain)
        return out

    def read_all(self) -> bytes:
        """The whole plaintext."""
        return b"".join(self._chunk(n) for n in range(self.size // CHUNK + 1))


def rewrap(path: str | Path, change: Callable[[list[Wrap], bytes], list[Wrap]]) -> None:
    """Writes what change makes of the wraps into the older slot and syncs; the payload is not touched."""
    with open(path, "r+b") as f:
        fcntl.flock(f, fcntl.LOCK_EX)  # two rewraps must not choose the same slot
        h = read_header(f)
        if h.generation == (1 << 64) - 1:
            raise RotorError("malformed_file", "generation")
        slot = encode_slot(h.generation + 1, change(h.wraps, h.raw))
        os.fsync(f.fileno())  # what was read may be in memory alone, and the only other table is overwritten now
        f.seek(h.payload - 2 * SLOT + (1 - h.newest) * SLOT)
        f.write(slot)
        f.flush()
        os.fsync(f.fileno())
