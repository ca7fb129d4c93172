"""The two endpoints that are measured: ours on Ray Serve, and the naive one; both of the same checkpoint."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import serve  # before Ray, for whose environment it sets defaults
from serve.deploy import deploy, shutdown
from stetholm.model.checkpoint import save_checkpoint
from stetholm.model.dtype import fast_dtype
from stetholm.model.fresh import build_model
from stetholm.ray_session import ray_session
from stetholm.settings import ModelSettings, Settings, StorageSettings, load_settings
from stetholm.storage import Storage, open_storage
from stetholm.training.ranks import free_port

assert serve
STARTED_S = 180.0
TOGETHER = 32
"""Answers computed together: as many as there are clients."""


@dataclass(frozen=True)
class Checkpoint:
    """A fresh model whose answers never end by themselves, so that both sides make as many tokens."""

    folder: Path
    uri: str
    storage: Storage


@contextlib.contextmanager
def checkpoint() -> Iterator[Checkpoint]:
    """COLA and SmolLM2-135M with fresh adapters, in a folder and in the embedded storage."""
    storage = open_storage(StorageSettings())
    model, processor = build_model(ModelSettings())
    generation = model.generation_config
    generation.suppress_tokens = sorted({*(generation.suppress_tokens or ()), *generation.eos_token_id})
    with tempfile.TemporaryDirectory(prefix="stetholm-bench-serve-") as name:
        save_checkpoint(model, processor, Path(name))
        uri = storage.join("runs", "bench", "sft", "checkpoint")
        storage.upload_dir(Path(name), uri)
        yield Checkpoint(Path(name), uri, storage)


def dtype_name() -> str:
    """The number format of both sides: bf16 where this processor computes in it."""
    return str(fast_dtype(gpu=False)).removeprefix("torch.")


def settings_of(made: Checkpoint, port: int, *more: str) -> Settings:
    """Of the endpoint: vLLM in one replica that has the whole machine."""
    chosen = [
        f"serve.model={made.uri}",
        f"serve.port={port}",
        "serve.engine=vllm",
        "serve.gate=ignore",
        "serve.max_replicas=1",
        f"serve.cpus_per_replica={os.cpu_count()}",
        f"serve.target_ongoing_requests={TOGETHER}",
        f"engine.max_num_seqs={TOGETHER}",
        "serve.request_timeout_s=600",
    ]
    return load_settings(None, [*chosen, *more], {})


@contextlib.contextmanager
def endpoint(made: Checkpoint, *more: str) -> Iterator[str]:
    """Our endpoint, as ``make serve`` puts it up, with more settings; its URL."""
    with ray_session():
        url = deploy(settings_of(made, free_port(), *more), made.storage)
        try:
            yield url
        finally:
            shutdown()


@contextlib.contextmanager
def naive(made: Checkpoint) -> Iterator[str]:
    """The naive endpoint in a process of its own; its URL."""
    with started([sys.executable, "-m", "benchmarks.serve_naive", str(made.folder)]) as url:
        yield url


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[str]:
    """A server that listens on the port that is its last argument; its URL once it answers ``/healthz``.

    Raises:
        RuntimeError: it has ended, or does not answer in time.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL)
    try:
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + STARTED_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server at {url} does not come up") from error
        time.sleep(0.1)
