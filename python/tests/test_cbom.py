"""The bill of materials that rotor inventory prints, before the schema of CycloneDX."""

import os
import re
import subprocess
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parent.parent.parent


def test_cbom(tmp_path: Path) -> None:
    rotor = tmp_path / "rotor"
    subprocess.run(["go", "build", "-o", str(rotor), "./cmd/rotor"], cwd=ROOT, check=True)
    env = {**os.environ, "HOME": str(tmp_path)}
    command = [rotor, "dev", "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if found := re.search(r"127\.0\.0\.1:[1-9][0-9]*", line):
                env["ROTOR_ADDRESS"] = found[0]
                break

        def run(*args: str) -> str:
            return subprocess.run([rotor, *args], cwd=tmp_path, env=env, check=True, capture_output=True, text=True).stdout

        run("server", "status", "--wait", "30s")
        for name, purpose, algorithm in (
            ("a", "encrypt", "AES-256-GCM"),
            ("b", "sign", "ML-DSA-65"),
            ("c", "decrypt", "HPKE-X-Wing"),
            ("d", "decapsulate", "ML-KEM-1024"),
            ("e", "mac", "HMAC-SHA512"),
            ("f", "sign", "RS256-2048"),
        ):
            run("key", "create", name, "--purpose", purpose, "--algorithm", algorithm, "--yes")
        bom = run("inventory", "--format", "cyclonedx")
    finally:
        server.terminate()
        server.wait()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(bom) is None
    assert validator.validate_str(bom.replace('"state": "active"', '"state": "awake"')) is not None, "a planted mistake is not found"
    assert bom.count('"related-crypto-material"') == 6
