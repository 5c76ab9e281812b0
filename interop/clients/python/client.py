"""The job of the Python library hvac: python client.py STEP... prints a line of JSON for each step, with the error that stopped it."""

import base64
import contextlib
import json
import os
import sys
import traceback

import hvac
from hvac import exceptions

MOUNT = "interop/hvac"
POLICY = f"""
path "{MOUNT}/encrypt/orders" {{ capabilities = ["update"] }}
path "{MOUNT}/decrypt/orders" {{ capabilities = ["update"] }}
path "{MOUNT}/keys/orders" {{ capabilities = ["read"] }}
"""


def b64(text):
    return base64.b64encode(text.encode()).decode()


def at(token):
    return hvac.Client(url=os.environ["VAULT_ADDR"], token=token, verify=os.environ["VAULT_CACERT"])


@contextlib.contextmanager
def refused(kind, text):
    try:
        yield
    except kind as e:
        if text not in str(e):
            raise AssertionError(f"refused by {e}, not by {text!r}") from e
    else:
        raise AssertionError(f"done, and should be refused: {text}")


class Job:
    def __init__(self):
        self.admin = at(os.environ["VAULT_TOKEN"])
        self.transit = self.admin.secrets.transit
        self.app = at("")

    def encrypt(self, text, key="orders", **more):
        return self.transit.encrypt_data(key, plaintext=b64(text), mount_point=MOUNT, **more)["data"]["ciphertext"]

    def decrypts(self, ciphertext, text, key="orders", **more):
        got = self.transit.decrypt_data(key, ciphertext=ciphertext, mount_point=MOUNT, **more)["data"]["plaintext"]
        assert got == b64(text), got

    def keys(self):
        self.admin.sys.enable_secrets_engine("transit", path=MOUNT)
        assert f"{MOUNT}/" in self.admin.sys.list_mounted_secrets_engines()["data"]
        with refused(exceptions.InvalidPath, ""):
            self.transit.list_keys(mount_point=MOUNT)
        self.transit.create_key("orders", mount_point=MOUNT)
        for kind in ("ed25519", "ecdsa-p256", "rsa-2048", "chacha20-poly1305", "ecdsa-p384"):
            self.transit.create_key(kind, key_type=kind, exportable=True, allow_plaintext_backup=True, mount_point=MOUNT)
        self.transit.create_key("kept", exportable=True, allow_plaintext_backup=True, mount_point=MOUNT)
        self.transit.create_key("derived", derived=True, convergent_encryption=True, mount_point=MOUNT)
        key = self.transit.read_key("orders", mount_point=MOUNT)["data"]
        assert (key["type"], key["latest_version"], key["name"]) == ("aes256-gcm96", 1, "orders"), key
        assert len(self.transit.list_keys(mount_point=MOUNT)["data"]["keys"]) == 8
        self.transit.create_key("gone", mount_point=MOUNT)
        with refused(exceptions.InvalidRequest, "deletion is not allowed for this key"):
            self.transit.delete_key("gone", mount_point=MOUNT)
        self.transit.update_key_configuration("gone", deletion_allowed=True, mount_point=MOUNT)
        self.transit.delete_key("gone", mount_point=MOUNT)
        with refused(exceptions.InvalidPath, ""):
            self.transit.read_key("gone", mount_point=MOUNT)
        with refused(exceptions.InvalidRequest, "encryption key not found"):
            self.transit.decrypt_data("gone", ciphertext="vault:v1:AAAA", mount_point=MOUNT)

    def use(self):
        self.first = self.encrypt("one")
        assert self.first.startswith("vault:v1:"), self.first
        self.decrypts(self.first, "one")
        assert self.encrypt("x", "derived", context=b64("a")) == self.encrypt("x", "derived", context=b64("a"))
        batch = self.transit.encrypt_data("orders", batch_input=[{"plaintext": b64("a")}, {"plaintext": b64("b")}], mount_point=MOUNT)
        items = [{"ciphertext": r["ciphertext"]} for r in batch["data"]["batch_results"]]
        plain = self.transit.decrypt_data("orders", batch_input=items, mount_point=MOUNT)["data"]["batch_results"]
        assert [r["plaintext"] for r in plain] == [b64("a"), b64("b")], plain
        key = self.transit.generate_data_key("orders", key_type="plaintext", mount_point=MOUNT)["data"]
        got = self.transit.decrypt_data("orders", ciphertext=key["ciphertext"], mount_point=MOUNT)["data"]["plaintext"]
        assert got == key["plaintext"]
        assert len(base64.b64decode(self.transit.generate_random_bytes(16, mount_point=MOUNT)["data"]["random_bytes"])) == 16
        digest = self.transit.hash_data(b64("abc"), algorithm="sha2-256", output_format="hex", mount_point=MOUNT)["data"]["sum"]
        assert digest.startswith("ba7816bf"), digest
        mac = self.transit.generate_hmac("orders", b64("m"), algorithm="sha2-256", mount_point=MOUNT)["data"]["hmac"]
        assert self.transit.verify_signed_data("orders", b64("m"), hmac=mac, hash_algorithm="sha2-256", mount_point=MOUNT)["data"]["valid"]
        for kind, more in (("ed25519", {}), ("ecdsa-p256", {"marshaling_algorithm": "jws"}), ("rsa-2048", {"signature_algorithm": "pss"})):
            sig = self.transit.sign_data(kind, b64("m"), mount_point=MOUNT, **more)["data"]["signature"]
            assert self.transit.verify_signed_data(kind, b64("m"), signature=sig, mount_point=MOUNT, **more)["data"]["valid"]
            assert not self.transit.verify_signed_data(kind, b64("n"), signature=sig, mount_point=MOUNT, **more)["data"]["valid"]
        with refused(exceptions.InvalidRequest, "invalid ciphertext: no prefix"):
            self.transit.decrypt_data("orders", ciphertext="none", mount_point=MOUNT)

    def rotate(self):
        self.transit.rotate_key("orders", mount_point=MOUNT)
        assert self.encrypt("two").startswith("vault:v2:")
        self.transit.update_key_configuration("orders", min_decryption_version=2, mount_point=MOUNT)
        with refused(exceptions.InvalidRequest, "too old"):
            self.decrypts(self.first, "one")
        self.transit.update_key_configuration("orders", min_decryption_version=1, mount_point=MOUNT)

    def rewrap(self):
        again = self.transit.rewrap_data("orders", ciphertext=self.first, mount_point=MOUNT)["data"]["ciphertext"]
        assert again.startswith("vault:v2:"), again
        self.decrypts(again, "one")

    def old(self):
        self.decrypts(self.first, "one")
        text = self.encrypt("kept", "kept")
        backup = self.transit.backup_key("kept", mount_point=MOUNT)["data"]["backup"]
        with refused(exceptions.VaultError, "already exists"):  # 500 at Vault, 400 at rotor
            self.transit.restore_key(backup, "kept", mount_point=MOUNT)
        self.transit.restore_key(backup, "restored", mount_point=MOUNT)
        self.decrypts(text, "kept", "restored")
        exported = self.transit.export_key("kept", "encryption-key", mount_point=MOUNT)["data"]["keys"]["1"]
        assert len(base64.b64decode(exported)) == 32
        for _ in range(2):
            self.transit.rotate_key("kept", mount_point=MOUNT)
        self.transit.update_key_configuration("kept", min_decryption_version=2, min_encryption_version=3, mount_point=MOUNT)
        self.transit.trim_key("kept", min_version=2, mount_point=MOUNT)
        assert list(self.transit.read_key("kept", mount_point=MOUNT)["data"]["keys"]) == ["2", "3"]

    def login(self):
        self.admin.sys.create_or_update_policy("interop-hvac", POLICY)
        role = self.admin.auth.approle
        role.create_or_update_approle("interop-hvac", token_policies=["interop-hvac"], token_ttl="20m", token_max_ttl="1h")
        assert role.read_role("interop-hvac")["data"]["token_ttl"] == 1200
        role_id = role.read_role_id("interop-hvac")["data"]["role_id"]
        secret = role.generate_secret_id("interop-hvac", metadata={"of": "interop"})["data"]
        told = role.read_secret_id("interop-hvac", secret["secret_id"])["data"]
        assert told["metadata"] == {"of": "interop"}, told
        got = self.app.auth.approle.login(role_id, secret["secret_id"])
        assert got["auth"]["lease_duration"] == 1200 and self.app.is_authenticated(), got
        text = self.app.secrets.transit.encrypt_data("orders", plaintext=b64("x"), mount_point=MOUNT)["data"]["ciphertext"]
        self.decrypts(text, "x")
        role.destroy_secret_id("interop-hvac", secret["secret_id"])
        with refused(exceptions.InvalidRequest, "invalid"):
            at("").auth.approle.login(role_id, secret["secret_id"])

    def renew(self):
        me = self.app.auth.token.lookup_self()["data"]
        assert me["path"] == "auth/approle/login" and me["meta"]["role_name"] == "interop-hvac", me
        assert self.app.auth.token.renew_self(increment="10m")["auth"]["client_token"] == self.app.token
        token = self.admin.auth.token.create(policies=["default"], ttl="1h", wrap_ttl="60s")["wrap_info"]["token"]
        opened = at(token).sys.unwrap()["auth"]["client_token"]
        assert at(opened).is_authenticated()
        with refused(exceptions.InvalidRequest, "wrapping token is not valid or does not exist"):
            at(token).sys.unwrap()

    def denied(self):
        app = self.app.secrets.transit
        with refused(exceptions.Forbidden, "permission denied"):
            app.rotate_key("orders", mount_point=MOUNT)
        with refused(exceptions.Forbidden, "permission denied"):
            app.encrypt_data("missing", plaintext=b64("x"), mount_point=MOUNT)
        with refused(exceptions.Forbidden, "permission denied"):
            app.list_keys(mount_point=MOUNT)
        capabilities = self.app.sys.get_capabilities([f"{MOUNT}/encrypt/orders"])["data"]["capabilities"]
        assert capabilities == ["update"], capabilities
        self.app.auth.token.revoke_self()
        assert not self.app.is_authenticated()
        with refused(exceptions.Forbidden, "permission denied"):
            app.read_key("orders", mount_point=MOUNT)

    def more(self):
        assert self.admin.sys.is_initialized() and not self.admin.sys.is_sealed()
        assert self.admin.sys.read_health_status(method="GET")["initialized"]
        assert "interop-hvac" in self.admin.sys.list_policies()["data"]["policies"]
        assert f'{MOUNT}/encrypt/orders' in self.admin.sys.read_policy("interop-hvac")["data"]["rules"]
        assert "approle/" in self.admin.sys.list_auth_methods()["data"]
        self.admin.sys.tune_mount_configuration(MOUNT, default_lease_ttl="1h")
        assert self.admin.sys.read_mount_configuration(MOUNT)["data"]["default_lease_ttl"] == 3600
        self.admin.sys.delete_policy("interop-hvac")
        with refused(exceptions.InvalidPath, ""):
            self.admin.sys.read_policy("interop-hvac")


def main():
    job = Job()
    for step in sys.argv[1:]:
        error = None
        try:
            getattr(job, step)()
        except Exception as e:  # what stops a step is its result
            where = traceback.extract_tb(e.__traceback__)
            line = next((f.lineno for f in reversed(where) if f.filename == __file__), 0)
            error = f"client.py:{line}: {type(e).__name__}: {e}"
        print(json.dumps({"step": step, "error": error}), flush=True)


if __name__ == "__main__":
    main()
