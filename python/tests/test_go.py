"""Both directions against the Go code that runs in rotor."""

import io
import os
import random
from pathlib import Path

import pytest
from conftest import Go
from rotor import RotorError, file, message

KEY = bytes(range(32))
SIZES = [0, 1, 16383, 16384, 16385, 32768, 50_000, *(random.Random(1).randrange(200_000) for _ in range(8))]


def wrapper(dek: bytes, raw: bytes) -> file.Wrap:
    return file.seal_dek(KEY, file.Wrap(file.WRAP_KEY_FILE, "key", 1, 1_700_000_000), raw, dek)


@pytest.mark.parametrize("floe", [False, True], ids=["cobblestone", "floe"])
@pytest.mark.parametrize("size", SIZES)
def test_files(go: Go, tmp_path: Path, size: int, floe: bool) -> None:
    plain, path, context = os.urandom(size), tmp_path / "f", {"team": "vision", "ü": ""}
    assert go("write", path=str(path), key=KEY, key_id="key", handle=1, data=plain, context=context, floe=floe)[1] == ""
    with path.open("rb") as src:
        f = file.File(src, file.key_file(KEY, "key"))
        assert f.read_all() == plain and f.header.immutable.context == context and f.header.immutable.suite == (2 if floe else 1)
        assert f.read_at(size // 2, 20_000) == plain[size // 2 :][:20_000]
        src.seek(0)
        assert b"".join(file.decrypt(src, file.key_file(KEY, "key"))) == plain
    path.unlink()
    file.write_file(path, io.BytesIO(plain), [wrapper], content_type="text/plain", context=context, floe=floe)
    assert go("read", path=str(path), key=KEY, key_id="key") == (plain, "")
    file.rewrap(path, lambda wraps, raw: [wrapper(file.open_dek(KEY, wraps[0], raw), raw)])
    assert go("read", path=str(path), key=KEY, key_id="key") == (plain, "")
    assert go("rewrap", path=str(path), key=KEY, key_id="key", handle=1)[1] == ""
    with path.open("rb") as src:
        f = file.File(src, file.key_file(KEY, "key"))
        assert f.read_all() == plain and f.header.generation == 3


def test_messages(go: Go) -> None:
    rng = random.Random(2)
    for n in (0, 1, 256, 10_000):
        plain, parts = os.urandom(n), [(f"l{i}", os.urandom(rng.randrange(40))) for i in range(rng.randrange(4))]
        listed = [{"Label": label, "Value": __import__("base64").b64encode(value).decode()} for label, value in parts]
        args = {"key": KEY, "handle": 7, "namespace": "default", "key_id": "k", "parts": listed}
        k = message.MessageKey(KEY, 7, "default", "k")
        sealed, code = go("encrypt", data=plain, **args)
        assert code == "" and k.decrypt(sealed, parts) == plain
        assert go("decrypt", data=k.encrypt(plain, parts), **args) == (plain, "")
        assert go("decrypt", data=k.encrypt(plain, [*parts, ("more", b"")]), **args)[1] == "decrypt_failed"


def outcome(raw: bytes, plain: bytes) -> str:
    """The error code, or "" for exactly the original plaintext."""
    try:
        assert file.File(io.BytesIO(raw), file.key_file(KEY, "key")).read_all() == plain
    except RotorError as e:
        return e.code
    return ""


def flipped(floe: bool) -> tuple[bytes, bytes, int]:
    plain, out = os.urandom(20_000), io.BytesIO()
    file.write(out, io.BytesIO(plain), [wrapper], context={"a": "b"}, floe=floe)
    header = file.read_header(io.BytesIO(out.getvalue()))
    return out.getvalue(), plain, header.payload


@pytest.mark.parametrize("floe", [False, True], ids=["cobblestone", "floe"])
def test_every_flipped_bit_is_an_error_or_the_plaintext(go: Go, tmp_path: Path, floe: bool) -> None:
    raw, plain, payload = flipped(floe)
    slots = payload - 2 * file.SLOT
    places = [*range(slots + 200), *range(slots + 200, payload, 97), *range(payload, payload + 80), *range(payload + 80, len(raw), 331)]
    path = tmp_path / "f"
    for n, at in enumerate(places):
        bad = bytearray(raw)
        bad[at] ^= 1 << at % 8
        code = outcome(bytes(bad), plain)
        assert (code == "") == (slots <= at < payload), at  # a torn slot is passed over, everything else is found
        if n % 7 == 0:
            path.write_bytes(bad)
            data, theirs = go("read", path=str(path), key=KEY, key_id="key")
            assert theirs == code and data == (b"" if code else plain), at


@pytest.mark.parametrize("floe", [False, True], ids=["cobblestone", "floe"])
def test_every_truncation_is_an_error(floe: bool) -> None:
    raw, plain, payload = flipped(floe)
    for n in [*range(0, payload, 499), *range(payload, len(raw), 173), len(raw) - 1]:
        assert outcome(raw[:n], plain) in ("truncated_file", "decrypt_failed"), n
        with pytest.raises(RotorError):
            list(file.decrypt(io.BytesIO(raw[:n]), file.key_file(KEY, "key")))


def test_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(RotorError, match="exists"):
        file.write_file(path, io.BytesIO(b"new"), [wrapper])
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["f"]
    file.write_file(path, io.BytesIO(b"new"), [wrapper], force=True)
    assert outcome(path.read_bytes(), b"new") == ""
