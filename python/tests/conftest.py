import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def vectors(name: str) -> Any:
    return json.loads((ROOT / "spec" / "vectors" / name).read_text())


class Go:
    """The Go code behind python/interop."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, op: str, **request: Any) -> tuple[bytes, str]:
        assert self._process.stdin and self._process.stdout
        fields = {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in request.items()}
        self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return base64.b64decode(answer["data"] or ""), answer["error"]


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Go]:
    binary = tmp_path_factory.mktemp("go") / "interop"
    subprocess.run(["go", "build", "-o", binary, "./python/interop"], cwd=ROOT, check=True)
    process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield Go(process)
    assert process.stdin
    process.stdin.close()
    assert process.wait() == 0
