"""The vectors of spec/vectors, which Go made, against this package, which shares no code with it."""

import base64
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from conftest import vectors
from rotor import RotorError, audit, delivery, file, message, token
from rotor._xaes import XAES

FILES, MESSAGES, TOKENS, AUDIT = vectors("files.json"), vectors("messages.json"), vectors("tokens.json"), vectors("audit.json")


def by_name(c: dict[str, Any]) -> str:
    return str(c["name"])


def pattern(n: int) -> bytes:
    return bytes((31 * i + i // 256) % 256 for i in range(n))


def unwrapper(w: file.Wrap, raw: bytes) -> bytes | None:
    keys = {1: FILES["kek"], 2: FILES["kek2"]}
    return None if w.key_id != FILES["key_id"] or w.version not in keys else file.open_dek(bytes.fromhex(keys[w.version]), w, raw)


@pytest.mark.parametrize("case", FILES["cases"], ids=by_name)
def test_file(case: dict[str, Any]) -> None:
    raw = gzip.decompress(base64.b64decode(case["file_gzip_base64"]))
    if "error" in case:
        with pytest.raises(RotorError) as e:
            file.File(io.BytesIO(raw), unwrapper).read_all()
        assert e.value.code == case["error"]
        with pytest.raises(RotorError):
            list(file.decrypt(io.BytesIO(raw), unwrapper))
        return
    f = file.File(io.BytesIO(raw), unwrapper)
    assert f.read_all() == pattern(case["size"]) == b"".join(file.decrypt(io.BytesIO(raw), unwrapper))
    assert f.header.immutable.content_type == case["content_type"] and f.header.immutable.context == (case["context"] or {})
    assert (f.header.generation, f.header.wraps[0].version) == (case["generation"], case["version"])
    assert [i for i in (0, 1) if f.header.slots[i] is None] == (case["torn"] or [])
    reproduced(raw, f, bytes.fromhex(case["dek"]))


def reproduced(raw: bytes, f: file.File, dek: bytes) -> None:
    """Every byte of the file follows from data key, salt, wraps and plaintext."""
    h, plain = f.header, f.read_all()
    salt = raw[h.payload : h.payload + 24]
    chunks = file.Chunks(dek, salt, h.raw)
    sealed = [chunks.seal(n, plain[n * file.CHUNK :][: file.CHUNK]) for n in range(f.size // file.CHUNK + 1)]
    assert raw[h.payload :] == salt + chunks.commitment + b"".join(sealed)
    assert h.immutable.encode() == h.raw
    assert raw[: file.PRELUDE + len(h.raw)] == file.encode_header(h.raw, h.wraps)[: file.PRELUDE + len(h.raw)]
    at = h.payload - 2 * file.SLOT + h.newest * file.SLOT
    assert raw[at : at + file.SLOT] == file.encode_slot(h.generation, h.wraps)
    w = h.wraps[0]
    kek = bytes.fromhex(FILES["kek" if w.version == 1 else "kek2"])
    assert file.seal_dek(kek, w, h.raw, dek, nonce=w.blob[:24]) == w


def parts(case: list[dict[str, str]] | None) -> list[message.Part]:
    return [(p["label"], bytes.fromhex(p["value"])) for p in case or []]


MESSAGE_KEY = message.MessageKey(bytes.fromhex(MESSAGES["material"]), MESSAGES["handle"], MESSAGES["namespace"], MESSAGES["key_id"])


@pytest.mark.parametrize("case", vectors("suites.json")["cases"], ids=lambda c: c["name"])
def test_suite(case: dict[str, Any]) -> None:
    key_id = (MESSAGES["handle"], MESSAGES["namespace"], MESSAGES["key_id"])
    k = message.MessageKey(bytes.fromhex(case["material"]), *key_id, algorithm=case["algorithm"])
    m = message.decode_text(case["text"])
    if case.get("error"):
        with pytest.raises(RotorError) as e:
            k.decrypt(m, parts(case["parts"]))
        assert e.value.code == case["error"]
        return
    plain = k.decrypt(m, parts(case["parts"]))
    assert plain == bytes.fromhex(case["plaintext"]) and message.message_handle(m) == MESSAGES["handle"] and m[0] == case["suite"]
    assert k.encrypt(plain, parts(case["parts"]), nonce=m[5 : len(m) - len(plain) - 16]) == m


@pytest.mark.parametrize("case", MESSAGES["cases"], ids=by_name)
def test_message(case: dict[str, Any]) -> None:
    m = message.decode_text(case["text"])
    assert message.encode_text(m) == case["text"]
    if "error" in case:
        with pytest.raises(RotorError) as e:
            MESSAGE_KEY.decrypt(m, parts(case["parts"]))
        assert e.value.code == case["error"]
        return
    plain = MESSAGE_KEY.decrypt(m, parts(case["parts"]))
    assert plain == bytes.fromhex(case["plaintext"]) and message.message_handle(m) == MESSAGES["handle"]
    assert MESSAGE_KEY.encrypt(plain, parts(case["parts"]), nonce=m[5:29]) == m


def test_parts_are_injective() -> None:
    for case in MESSAGES["injective"]:
        m, a, b = message.decode_text(case["message"]), parts(case["a"]), parts(case["b"])
        assert MESSAGE_KEY.decrypt(m, a) == b"x" and MESSAGE_KEY.associated_data(a) != MESSAGE_KEY.associated_data(b)
        with pytest.raises(RotorError):
            MESSAGE_KEY.decrypt(m, b)


def test_xaes() -> None:
    for case in vectors("xaes.json")["cases"]:
        c = {k: bytes.fromhex(v) for k, v in case.items() if k != "name"}
        assert XAES(c["key"]).seal(c["nonce"], c["plaintext"], c["data"]) == c["sealed"]
        assert XAES(c["key"]).open(c["nonce"], c["sealed"], c["data"]) == c["plaintext"]


def test_delivery() -> None:
    for c in vectors("delivery.json")["cases"]:
        at = (c["cluster"], c["instance"], bytes.fromhex(c["incarnation"]), bytes.fromhex(c["session"]))
        live = [(m["version"], bytes.fromhex(m["bytes"])) for m in c["material"] or [] if m["phase"] not in ("retired", "destroyed")]
        assert delivery.proof(*at, c["key_id"], tuple(c["epoch"]), live).hex() == c["proof"], c["name"]
        assert delivery.hello_input(*at, bytes.fromhex(c["public"])).hex() == c["hello_input"]
        assert delivery.server_input("rotor/snapshot/2", b"body").hex() == c["server_input"]


@pytest.mark.parametrize("case", TOKENS["cases"], ids=by_name)
def test_token(case: dict[str, Any]) -> None:
    keys = token.parse_jwks(str.encode(__import__("json").dumps(TOKENS["jwks"])))
    assert len(keys) == 4

    def verify() -> token.Claims:
        return token.verify(case["token"], keys, issuer=TOKENS["issuer"], audience=TOKENS["audience"], now=case["now"])

    if "error" in case:
        with pytest.raises(RotorError) as e:
            verify()
        assert e.value.code == case["error"]
    else:
        assert verify() == token.Claims(**case["claims"])


@pytest.mark.parametrize("case", AUDIT["logs"], ids=by_name)
def test_audit_log(case: dict[str, Any], tmp_path: Path) -> None:
    for name, text in case["files"].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(text))
    if case["good"]:
        r = audit.verify(tmp_path, AUDIT["key"])
        assert (r.size, r.root) == (case["size"], case["root"])
    else:
        with pytest.raises(RotorError) as e:
            audit.verify(tmp_path, AUDIT["key"])
        assert e.value.code == "audit_broken"


def test_audit_entries() -> None:
    for leaf in AUDIT["leaves"]:
        raw = leaf["entry"].encode()
        if leaf["good"]:
            audit.decode_entry(raw)
            assert base64.b64encode(audit.leaf_hash(raw)).decode() == leaf["hash"]
        else:
            with pytest.raises(RotorError):
                audit.decode_entry(raw)


def test_tile_paths() -> None:
    assert audit.tile_path(0, 256) == "000"
    assert audit.tile_path(1234067, 256) == "x001/x234/067"
    assert audit.tile_path(1000, 9) == "x001/000.p/9"
