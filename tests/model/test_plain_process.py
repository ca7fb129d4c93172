"""The model in a process of its own that knows neither Ray nor DeepSpeed: a notebook, somebody's script."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stetholm.model import merge_lora, save_checkpoint
from stetholm.storage import Storage
from tests.conftest import ROOT
from tests.model.tiny import lively, tiny_model

SCRIPT = """
import json, sys
import numpy as np, torch
from stetholm.model import StethoLMForConditionalGeneration, StethoLMProcessor

found = {}
for name, source in zip(("folder", "uri"), sys.argv[1:]):
    processor = StethoLMProcessor.from_pretrained(source)
    model = StethoLMForConditionalGeneration.from_pretrained(source)
    tone = np.sin(np.arange(16_000) * 0.05).astype(np.float32)
    batch = processor(
        text=["Is it normal?", "Compare these two sounds of the lung.", "Hi"],
        audio=[tone, [tone, tone[::2]], []],
        sampling_rate=16_000,
    )
    ways = {
        "greedy": {},
        "sampling": {"do_sample": True},
        "beams": {"num_beams": 3},
        "several": {"num_beams": 3, "num_return_sequences": 2},
        "several samples": {"do_sample": True, "num_return_sequences": 2},
    }
    found[name] = {}
    for way, how in ways.items():
        torch.manual_seed(0)
        out = model.generate(**batch, max_new_tokens=5, **how)
        found[name][way] = processor.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :])
loaded = {module.split(".")[0] for module in sys.modules}
print(json.dumps({"found": found, "loaded": sorted(loaded & {"ray", "deepspeed", "trl", "vllm"})}))
"""


def test_load_and_generate_without_ray(storage: Storage, tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path / "base")
    merge_lora(lively(model))
    save_checkpoint(model, processor, tmp_path / "model")
    uri = storage.join("test-plain-process")
    storage.upload_dir(tmp_path / "model", uri)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model"), uri]
    done = subprocess.run(command, cwd=ROOT / "platform", capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert said["loaded"] == []
    folder, bucket = said["found"]["folder"], said["found"]["uri"]
    assert folder == bucket
    sizes = {way: len(answers) for way, answers in folder.items()}
    assert sizes == {"greedy": 3, "sampling": 3, "beams": 3, "several": 6, "several samples": 6}
    assert folder["several"][::2] == folder["beams"]
