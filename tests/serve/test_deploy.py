"""What is found out before anything starts, and the foreground command."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from ray import serve

from serve import deploy as deployment
from serve.app import build, build_app
from serve.deploy import base_url, deploy, require_free_port, wait_ready, with_force
from stetholm.cluster.serve_config import require_keys
from stetholm.errors import UserError
from stetholm.settings import ServeSettings, load_settings
from stetholm.storage import Storage
from tests.serve.test_app import free_port

ROOT = Path(__file__).resolve().parents[2]
UNSIGNED = "serve.gate=if-there"
"""The tests' checkpoints have no gate.json."""


def test_a_checkpoint_that_is_not_there(storage: Storage):
    settings = load_settings(None, [f"serve.model={storage.join('nowhere')}"], {})
    with pytest.raises(UserError, match="no checkpoint at s3://stetholm/nowhere"):
        build(settings, storage)


def test_a_run_without_a_checkpoint(storage: Storage):
    with pytest.raises(UserError, match="no finished checkpoint"):
        build(load_settings(None, ["run.name=never-ran"], {}), storage)


def test_the_runs_last_checkpoint_is_taken(storage: Storage, tiny_checkpoint: str):
    storage.write_json(storage.join("runs", "serve-test", "sft", "result.json"), {"output": tiny_checkpoint})
    assert build(load_settings(None, ["run.name=serve-test", UNSIGNED], {}), storage) is not None


def test_a_deploy_config_builds_the_same(storage: Storage, tiny_checkpoint: str):
    assert build_app({"set": f"serve.model={tiny_checkpoint} serve.max_replicas=3 {UNSIGNED}"}) is not None
    with pytest.raises(UserError, match="no checkpoint at"):
        build_app({"set": [f"serve.model={storage.join('nowhere')}"]})


def test_a_port_in_use_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use"):
            require_free_port("127.0.0.1", port)
    require_free_port("127.0.0.1", port)


def test_addresses():
    assert base_url(ServeSettings(host="0.0.0.0", port=81)) == "http://127.0.0.1:81"
    with pytest.raises(UserError, match="cannot listen"):
        require_free_port("203.0.113.7", 8000)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "endpoint.example.org"])
def test_others_may_ask_only_with_keys_or_if_somebody_says_so(host, storage, tiny_checkpoint):
    settings = load_settings(None, [f"serve.model={tiny_checkpoint}", UNSIGNED], {})
    settings = settings.model_copy(update={"serve": settings.serve.model_copy(update={"host": host})})
    with pytest.raises(UserError, match=f"whoever reaches {host} could ask the endpoint"):
        deploy(settings, storage)
    for allowed in ({"allow_anonymous": True}, {"api_keys_file": "keys.txt"}):
        require_keys(settings.serve.model_copy(update=allowed))
    for own in ("127.0.0.1", "::1", "localhost"):
        require_keys(ServeSettings(host=own))


def clean() -> dict[str, str]:
    """The environment without what a Ray of this very process has set: a command must do without."""
    return {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}


def command(*settings: str) -> list[str]:
    return [sys.executable, "-m", "serve.deploy", *(part for one in settings for part in ("--set", one))]


def test_the_command_refuses_a_missing_checkpoint(storage: Storage):
    chosen = command(f"serve.model={storage.join('nowhere')}", f"serve.port={free_port()}")
    done = subprocess.run(chosen, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("serve: no checkpoint at")


def test_the_command_refuses_a_checkpoint_nobody_has_signed_off_unless_forced(storage: Storage, tiny_checkpoint: str):
    chosen = command(f"serve.model={tiny_checkpoint}", f"serve.port={free_port()}")
    done = subprocess.run(chosen, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "no gate.json beside" in done.stderr.strip().splitlines()[-1]
    # What comes after the gate: a key file that is not there.
    forced = subprocess.run(
        [*chosen, "--force", "--set", "serve.api_keys_file=/nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert forced.returncode == 2 and "cannot read /nowhere" in forced.stderr.strip().splitlines()[-1]
    assert with_force(["--force", "--set", "x=y"]) == ["--set=serve.gate=ignore", "--set", "x=y"]


def test_the_command_refuses_other_machines_without_keys(storage: Storage, tiny_checkpoint: str):
    chosen = command(f"serve.model={tiny_checkpoint}", f"serve.port={free_port()}", UNSIGNED, "serve.host=0.0.0.0")
    done = subprocess.run(chosen, cwd=ROOT, capture_output=True, text=True, timeout=120)
    [line] = done.stderr.strip().splitlines()
    assert done.returncode == 2 and "serve.allow_anonymous=true" in line


def started(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The foreground command, and the line in which it says where the endpoint is."""
    process = subprocess.Popen(
        [*command(), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean(), "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    return process, next(line for line in iter(process.stdout.readline, "") if "http://" in line)


@pytest.mark.long
def test_the_command_serves_until_it_is_told_to_end_and_another_one_changes_the_model(
    storage: Storage, tiny_checkpoint: str, second_checkpoint: str
):
    port = free_port()
    process, line = started("--force", f"--set=serve.model={tiny_checkpoint}", f"--set=serve.port={port}")
    url = f"http://127.0.0.1:{port}"
    assert url in line and httpx.get(f"{url}/readyz", timeout=60).status_code == 200
    again = command(f"serve.model={second_checkpoint}", f"serve.port={port}", UNSIGNED)
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=200, env=clean())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1].removeprefix("RESULT "))
    assert result["changed"] and result["model"] == second_checkpoint
    body = {"model": "stetholm", "messages": [{"role": "user", "content": "Normal?"}], "max_tokens": 2}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["model"] == "stetholm/serve-second/sft"
    broken = storage.join("runs", "broken-change", "sft", "checkpoint")
    storage.write_text(f"{broken}/config.json", "{}")
    failed = command(f"serve.model={broken}", f"serve.port={port}", UNSIGNED)
    done = subprocess.run(failed, cwd=ROOT, capture_output=True, text=True, timeout=300, env=clean())
    assert done.returncode == 2 and "the old model answers with its settings" in done.stderr.splitlines()[-1]
    listed = [one["id"] for one in httpx.get(f"{url}/v1/models", timeout=60).json()["data"]]
    assert listed == ["stetholm", "stetholm/serve-second/sft"]
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["model"] == answer["model"]
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert rest.strip().splitlines()[-1].startswith("RESULT ")
    require_free_port("127.0.0.1", port)


def test_what_never_gets_ready_is_taken_down_again(ray_cluster, storage, tiny_checkpoint, monkeypatch):
    chosen = [f"serve.model={tiny_checkpoint}", f"serve.port={free_port()}", UNSIGNED, "serve.engine=transformers"]
    settings = load_settings(None, chosen, {})
    # A place that is never ready, and less patience than five minutes.
    monkeypatch.setattr(deployment, "wait_ready", lambda url: wait_ready(f"{url}/nowhere", 0.5))
    with pytest.raises(UserError, match="the endpoint did not come up: http"):
        deploy(settings, storage)
    require_free_port("127.0.0.1", settings.serve.port)
    assert not serve.status().applications
    serve.shutdown()
