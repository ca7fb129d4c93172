"""``model/load``: memory and time of loading a model of MedGemma-4B's shape in bfloat16; a second copy would show.

The weights are noise, written shard by shard from the names and shapes of the true class, so that no model of that
size is ever made here. What is measured is a fresh process that calls ``from_pretrained`` and then reads every weight
once: safetensors maps files into memory, so that without reading them nothing would have been loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from benchmarks.report import Result
from stetholm.model import StethoLMConfig, StethoLMForConditionalGeneration
from stetholm.model.loading import INDEX

LAYERS = 34
TEXT: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": 262_208,
    "hidden_size": 2560,
    "intermediate_size": 10_240,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
}
"""The text part of google/medgemma-4b-it's config.json."""
SHARD_BYTES = 10**9
NOISE = 2**22
SPARE = 3 * 2**30
"""Memory that must be free beyond one copy of the weights: libraries, and the largest tensor while it is written."""


def load() -> Iterator[Result]:
    """One copy in memory, at the speed of reading the files."""
    config = StethoLMConfig(
        text_config={**TEXT, "num_hidden_layers": LAYERS}, audio_token_id=TEXT["vocab_size"], dtype="bfloat16"
    )
    with torch.device("meta"):
        model = StethoLMForConditionalGeneration(config)
    size = 2 * model.num_parameters()
    if psutil.virtual_memory().available < size + SPARE:
        print(f"bench: model/load is left out: it needs {(size + SPARE) / 1e9:.0f} GB of memory", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="stetholm-bench-load-") as name:
        weights = write_checkpoint(model, Path(name))
        plain = read_files(Path(name))
        seen = measure(Path(name))
    how = {
        "parameters": model.num_parameters(),
        "layers": LAYERS,
        "dtype": "bfloat16",
        "from_pretrained_seconds": seen["load_seconds"],
        "seconds_with_reading": seen["seconds"],
        "resident_before_mib": seen["before"] / 2**20,
        "anonymous_mib": seen["anonymous"] / 2**20,
    }
    yield Result(
        "model/load",
        weights / 2**20,
        seen["peak"] / 2**20,
        "MiB",
        "peak resident memory of the process that loads them, libraries included; ours is the weights' own size, so 1 "
        "is one copy and 0.5 is two",
        how,
    )
    yield Result(
        "model/load",
        weights / seen["seconds"] / 1e9,
        weights / plain / 1e9,
        "GB/s",
        "reading the same files from the page cache into nothing, against from_pretrained and reading each weight once",
        how,
    )


def write_checkpoint(model: StethoLMForConditionalGeneration, folder: Path) -> int:
    """Noise in the shapes of ``model``, which lies on the meta device; bytes of all weights."""
    torch.manual_seed(0)
    noise = (torch.randn(NOISE) * 0.02).bfloat16()
    weight_map: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(shards(model), 1):
        name = f"model-{number:05d}.safetensors"
        shard = {key: fill(key, like, noise) for key, like in shapes.items()}
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
        total += sum(value.nbytes for value in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return total


def shards(model: StethoLMForConditionalGeneration) -> Iterator[dict[str, torch.Tensor]]:
    """The model's weights, less tied ones, in parts of about ``SHARD_BYTES`` (as bfloat16)."""
    tied = set(model.all_tied_weights_keys or {})
    part: dict[str, torch.Tensor] = {}
    for key, like in model.state_dict().items():
        if key not in tied:
            part[key] = like
        if 2 * sum(value.numel() for value in part.values()) >= SHARD_BYTES:
            yield part
            part = {}
    if part:
        yield part


def fill(key: str, like: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A tensor of that shape: noise in bfloat16; batch norm's statistics as they begin, in their own type."""
    if not like.is_floating_point() or "running_" in key:
        return (
            torch.ones(like.shape, dtype=like.dtype)
            if key.endswith("_var")
            else torch.zeros(like.shape, dtype=like.dtype)
        )
    return noise.repeat(-(-like.numel() // NOISE))[: like.numel()].view(like.shape)


def read_files(folder: Path) -> float:
    """Seconds to read all weights once more: they have just been written."""
    buffer = bytearray(16 * 2**20)
    started = time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - started


def measure(folder: Path) -> dict[str, float]:
    """What a fresh process says of loading ``folder``."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", str(folder)], capture_output=True, text=True, check=True
    )
    seen: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seen


def loaded(folder: Path) -> dict[str, float]:
    """Load, read every weight once, and tell seconds and bytes."""
    before = status("VmRSS")
    started = time.perf_counter()
    model = StethoLMForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    load_seconds = time.perf_counter() - started
    for parameter in model.parameters():
        assert parameter.dtype == torch.bfloat16
        parameter.detach().view(torch.int16).max()
    return {
        "load_seconds": load_seconds,
        "seconds": time.perf_counter() - started,
        "before": before,
        "peak": status("VmHWM"),
        "anonymous": status("RssAnon"),
    }


def status(field: str) -> int:
    """Bytes, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(json.dumps(loaded(Path(sys.argv[1]))))
