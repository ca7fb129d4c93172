"""The snippets of docs/api.md, each as it stands there, against the endpoint's own application."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.keys import ApiKey, ApiKeys
from stetholm.serving.transformers_engine import TransformersEngine
from tests.serve.running import serve_in_thread
from tests.serving.sounds import wav

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
KEY = "sk-stetholm-of-the-docs"
PROGRAMS = {
    "python": (sys.executable, "snippet.py"),
    "bash": (shutil.which("curl") and shutil.which("bash"), "snippet.sh"),
    "javascript": (shutil.which("node"), "snippet.mjs"),
}


@pytest.fixture(scope="module")
def url(engine: TransformersEngine) -> Iterator[str]:
    with serve_in_thread(engine, ApiKeys((ApiKey.of("docs", KEY),))) as url:
        yield url


def test_there_is_one_of_each_kind():
    assert {language for language, _ in SNIPPETS} == set(PROGRAMS)


@pytest.mark.parametrize(("language", "code"), SNIPPETS, ids=[language for language, _ in SNIPPETS])
def test_a_snippet_runs_as_it_stands(language, code, url, tmp_path):
    program, name = PROGRAMS[language]
    if not program:
        pytest.skip(f"nothing here runs {language}")
    assert "http://127.0.0.1:8000/" in code
    (tmp_path / name).write_text(code.replace("http://127.0.0.1:8000/", url))
    (tmp_path / "heart.wav").write_bytes(wav(3.0))
    environment = {**os.environ, "STETHOLM_KEY": KEY}
    done = subprocess.run([program, name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_setting_and_code_that_is_named_exists():
    from stetholm.settings import AudioSettings, ServeSettings

    named = set(re.findall(r"`serve\.(\w+)`", TEXT))
    assert named and named <= set(ServeSettings.model_fields)
    assert "max_seconds" in AudioSettings.model_fields
    source = "".join(path.read_text() for path in (ROOT / "serve").glob("*.py"))
    for row in re.findall(r"^\| 4\d\d \| (.*?) \||^\| 503 \| (.*?) \|", TEXT, re.MULTILINE):
        for code in re.findall(r"`(\w+)`", "".join(row)):
            assert f'"{code}"' in source or code == "less_than_equal", code
