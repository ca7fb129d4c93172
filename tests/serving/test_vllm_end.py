"""The vLLM engine outside the good case: its owner killed, a start that fails, a real language model, the jobs."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import numpy as np
import psutil
import pytest

from stetholm.errors import UserError
from stetholm.model import merge_lora
from stetholm.model.fresh import build_model
from stetholm.preference.prefer import prefer
from stetholm.serving import EngineDead, Request, Sampling
from stetholm.serving.load import load_engine, vllm_engine
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.serving.vllm_start import vllm_installed
from stetholm.settings import EngineSettings, ModelSettings, load_settings
from tests.evaluation.corpus import make_checkpoint, make_corpus
from tests.serving.test_engine import asked, streamed
from tests.serving.tiny import save_tiny, tiny_model

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not vllm_installed(), reason="NO VLLM HERE: THE ENGINE vllm IS NOT TESTED (python scripts/setup_env.py --vllm)"
    ),
]
ROOT = Path(__file__).resolve().parents[2]
OWNER = """
import json, os, time, psutil
if __name__ == "__main__":
    from stetholm.serving.load import vllm_engine
    from stetholm.settings import EngineSettings
    from tests.serving.tiny import tiny_model
    settings = EngineSettings(kv_cache_bytes=2**26, max_num_seqs=4, threads=1)
    engine = vllm_engine(*tiny_model(head_dim=32), "cpu", settings)
    print(json.dumps([child.pid for child in psutil.Process().children(recursive=True)]), flush=True)
    time.sleep(600)
"""


def test_no_process_outlives_an_owner_that_is_killed(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env) as owner:
        assert owner.stdout is not None
        children = json.loads(next(line for line in owner.stdout if line.startswith("[")))
        owner.send_signal(signal.SIGKILL)
    assert children
    deadline = time.monotonic() + 60
    while left := [pid for pid in children if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_a_process_that_is_killed_ends_all_answers_and_the_engine_says_so():
    engine = vllm_engine(*tiny_model(head_dim=32), "cpu", EngineSettings(kv_cache_bytes=2**26, threads=1))
    [core] = [one for one in psutil.Process().children(recursive=True) if "EngineCore" in " ".join(one.cmdline())]

    async def lose() -> list[object]:
        reading = [asyncio.create_task(streamed(engine, asked(max_new_tokens=3000))) for _ in range(3)]
        async with aclosing(engine.stream(asked(max_new_tokens=3000))) as deltas:
            await anext(deltas)
            core.kill()
            async with asyncio.timeout(60):
                return await asyncio.gather(*reading, return_exceptions=True)

    assert {type(error) for error in asyncio.run(lose())} == {EngineDead}
    with pytest.raises(EngineDead):
        asyncio.run(streamed(engine, asked()))
    with pytest.raises(EngineDead):
        engine.generate_many([asked()])
    engine.close()


def test_a_start_that_fails_says_what_to_change():
    with pytest.raises(UserError, match=r"engine\.kv_cache_bytes"):
        vllm_engine(*tiny_model(head_dim=32), "cpu", EngineSettings(kv_cache_bytes=2**60, threads=1))


def test_generation_settings_beyond_it_are_refused_before_the_start(tmp_path):
    model, processor = tiny_model()
    model.generation_config.repetition_penalty = 1.2
    with pytest.raises(UserError, match="repetition_penalty"):
        vllm_engine(model, processor, "cpu", EngineSettings(kv_cache_bytes=2**26))


def test_the_embedded_language_model_answers_as_the_reference_in_fp32():
    rng = np.random.default_rng(0)
    texts = ("Is this heart sound normal or abnormal?", "Generate a brief summary of the lung sound findings.")
    how = (Sampling(max_new_tokens=24), Sampling(24, 1.0, seed=1, n=2), Sampling(24, 0.8, 0.9, seed=2))
    asked = [Request(text, rng.random((1, 64, 218), np.float32), sampling=one) for text in texts for one in how]
    answers = []
    for kind in ("transformers", "vllm"):
        model, processor = build_model(ModelSettings(), seed=0)
        model.float()
        merge_lora(model)
        engine = (
            TransformersEngine(model, processor)
            if kind == "transformers"
            else vllm_engine(model, processor, "cpu", EngineSettings())
        )
        answers.append(engine.generate_many(asked))
        engine.close()
    assert answers[0] == answers[1]


def test_a_checkpoint_in_storage_is_loaded(storage, tmp_path):
    uri = storage.join("test-vllm", "tiny")
    storage.upload_dir(save_tiny(tmp_path, head_dim=32), uri)
    engine = load_engine(uri, storage, "vllm", settings=EngineSettings(kv_cache_bytes=2**26, dtype="fp32", threads=1))
    [[answer]] = engine.generate_many([Request("Is this normal?", sampling=Sampling(max_new_tokens=4))])
    engine.close()
    assert answer.completion_tokens == 4


def test_preference_pairs_are_those_of_the_reference(storage, ray_cluster, tmp_path):
    base = storage.join("test-vllm-prefer")
    checkpoint = make_checkpoint(storage, f"{base}/checkpoint", tmp_path, head_dim=32)
    common = [f"model.init_from={checkpoint}", f"corpus.uri={make_corpus(storage, f'{base}/corpus')}"]
    common += ["prefer.pairs=4", "prefer.candidates=3", "prefer.max_new_tokens=8", "prefer.max_replicas=1"]
    common += ["engine.kv_cache_bytes=67108864", "engine.dtype=fp32"]
    found = [
        prefer(load_settings(overrides=[*common, f"prefer.engine={kind}", f"run.name={kind}"], environ={}), storage)
        for kind in ("transformers", "vllm")
    ]
    tables = [storage.read_bytes(f"{one['output'].removesuffix('/pairs')}/candidates.parquet") for one in found]
    assert tables[0] == tables[1]
    assert found[0]["pairs"] == found[1]["pairs"] > 0
