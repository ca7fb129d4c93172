"""The layout: ``platform/`` beside the standard library's module, one-way imports, jobs under ``ray job submit``."""

import ast
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stetholm.demo.head import ray_head
from stetholm.demo.lines import Step
from stetholm.demo.submit import JobFailed, run_job

ROOT = Path(__file__).resolve().parents[2]
PROBE = """import json, platform, serve, stetholm
print("RESULT " + json.dumps({"file": platform.__file__, "python": platform.python_version()}))"""
FORBIDDEN = {
    "audio": {"torch", "ray"},
    "model": {"ray"},
    "serving": {"ray", "fastapi", "starlette", "httpx"},
    "settings": {"ray", "torch"},
}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.split(".")[0] for name in plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    }


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    for path in (ROOT / "platform" / "stetholm" / package).rglob("*.py"):
        assert not imported(path) & FORBIDDEN[package], path


def test_platform_is_the_standard_librarys_from_the_repository_root():
    assert not (ROOT / "platform" / "__init__.py").exists()
    ran = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(ROOT) not in ran.stdout


def test_jobs_under_ray_job_submit(tmp_path, monkeypatch):
    """One head for all: ``platform`` is not shadowed, a failing script's last line and status come back, all ends."""
    monkeypatch.setenv("STETHOLM_HOME", str(tmp_path))
    log = tmp_path / "job.log"
    with ray_head(tmp_path) as head:
        client = head.client()
        found = run_job(client, "probe", shlex.join(["python", "-c", PROBE]), ROOT, log, lambda step: None)
        assert "working_dir_files" not in found["file"] and str(ROOT) not in found["file"]
        failing = "echo 'sft  1/2  loss 3.0'; echo 'ingest: no such file' >&2; exit 2"
        steps = []
        with pytest.raises(JobFailed, match="ingest: no such file") as failed:
            run_job(client, "failing", failing, ROOT, log, steps.append)
        assert failed.value.status == 2
        assert steps == [Step("sft", 1, 2, "loss 3.0")]
        with pytest.raises(JobFailed, match="no RESULT"):
            run_job(client, "silent", "true", ROOT, log, lambda step: None)
    assert head.process.poll() is not None
    assert not head.folder.exists()
