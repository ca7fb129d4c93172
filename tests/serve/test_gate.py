"""Keys on disk, and bodies that never end."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from serve.gate import Gate
from serve.keys import ApiKeys, hash_key, load_keys
from stetholm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_keys_are_read_and_recognised(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# clinic\n\nclinic:{hash_key('sk-1')}\nlab.2:{hash_key('sk-2')}\n")
    keys = load_keys(str(path))
    assert [keys.owner(f"Bearer {key}") for key in ("sk-1", "sk-2", "sk-3", "")] == ["clinic", "lab.2", None, None]
    assert keys.owner(None) is None and load_keys(None) == ApiKeys()


@pytest.mark.parametrize(
    ("content", "message"), [("clinic:sk-plain\n", "line 1"), ("# nothing\n", "no key"), (None, "cannot read")]
)
def test_a_bad_key_file_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_keys(str(path))
    assert "sk-plain" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_is_made_and_only_its_hash_goes_to_the_file(tmp_path):
    made = subprocess.run([sys.executable, "-m", "serve.keys", "clinic"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0
    key = made.stderr.split()[-1]
    path = tmp_path / "keys"
    path.write_text(made.stdout)
    assert load_keys(str(path)).owner(f"Bearer {key}") == "clinic" and key not in made.stdout


def test_a_body_that_drips_for_ever_is_ended():
    sent: list[dict] = []

    async def receive() -> dict:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: dict) -> None:
        sent.append(message)

    async def app(*_: object) -> None:
        raise AssertionError("the application must not be reached")

    scope = {"type": "http", "path": "/v1/analyze", "headers": []}
    asyncio.run(Gate(app, ApiKeys(), 10_000, body_timeout_s=0.1)(scope, receive, send))
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]
