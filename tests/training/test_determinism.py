"""The same seed and the same workers give the same loss curve, bit for bit (fp32, CPU); another seed gives another."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from stetholm.corpus.shards import write_corpus
from stetholm.settings import Settings, StageName
from stetholm.storage import Storage
from stetholm.training.job import StageJob
from stetholm.training.lineage import Lineage
from stetholm.training.ranks import free_port
from tests.evaluation.corpus import rows
from tests.serving.tiny import tiny_model

STEPS, STAGES = 5, ("align", "sft", "dpo")
RANKS, PATIENCE = 2, 300

MakeJob = Callable[..., StageJob]


@pytest.fixture(scope="module")
def job(storage: Storage, language_model: Path) -> MakeJob:
    """Makes the job of a stage: a fresh model with dropout, some steps, every loss logged."""
    uris = {name: storage.join("test-determinism", name) for name in ("corpus", "pairs")}
    split = rows(range(6))
    pairs = [row | {"chosen": row["response"], "rejected": f"I cannot tell {i}."} for i, row in enumerate(split)]
    extra = [pa.field("chosen", pa.string()), pa.field("rejected", pa.string())]
    write_corpus(storage, uris["corpus"], {"train": split}, inputs={}, row_group_rows=4)
    write_corpus(storage, uris["pairs"], {"train": pairs}, inputs={}, row_group_rows=4, extra=extra)

    def make(stage: StageName, seed: int) -> StageJob:
        train = {"precision": "fp32", "batch_size": 2, "max_steps": STEPS, "log_every": 1, "trackers": []}
        settings = Settings.model_validate(
            {
                "run": {"name": "determinism", "seed": seed},
                "model": {"language_model": str(language_model)},
                "train": {**train, "checkpoint_every": STEPS, "learning_rate": 1e-2},
                "align": {"caption_weight": 0.5},
            }
        )
        corpus = uris["pairs" if stage == "dpo" else "corpus"]
        return StageJob(stage, settings, storage, corpus, Lineage(stage, "determinism", None, corpus, "sha", "code"))

    return make


def losses(job: StageJob) -> list[float]:
    """Train; the loss of each step."""
    from stetholm.training.history import FILE, from_lines
    from stetholm.training.worker import run_stage

    found: list[float] = []

    def keep(numbers: dict[str, Any], folder: Path | None) -> None:
        if folder is not None:
            found.extend(record["loss"] for record in from_lines((folder / FILE).read_text()))
            shutil.rmtree(folder)

    run_stage(job, None, keep)
    return found


@pytest.mark.usefixtures("ray_cluster", "alone")
@pytest.mark.parametrize("stage", [pytest.param("align", marks=pytest.mark.long), "sft", "dpo"])
def test_one_process(stage: StageName, job: MakeJob) -> None:
    first = losses(job(stage, 0))
    assert len(first) == STEPS
    assert losses(job(stage, 0)) == first
    assert losses(job(stage, 1)) != first


def test_gradients_of_recordings_that_many_prompts_share() -> None:
    """Large enough that torch would add them up in parallel."""
    model, processor = tiny_model()
    prompts, recordings = 512, 4
    ids = torch.tensor([processor.encode_prompt("?", recordings=1)] * prompts)
    index = torch.arange(prompts) % recordings
    sounds = torch.randn(recordings, 4, 32, requires_grad=True)
    weights = torch.randn(*ids.shape, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    found = set()
    for _ in range(100):
        sounds.grad = None
        (model.model.embed(ids, audio_embeds=sounds, audio_index=index) * weights).sum().backward()
        assert sounds.grad is not None
        found.add(sounds.grad.numpy().tobytes())
    torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.long
def test_two_processes(job: MakeJob) -> None:
    first, second = (curves_of_ranks([job(stage, 0) for stage in STAGES]) for _ in range(2))
    assert [len(curve) for curve in first] == [STEPS] * len(STAGES)
    assert first == second
    assert len({tuple(curve) for curve in first}) == len(STAGES)


def curves_of_ranks(jobs: list[StageJob]) -> list[list[float]]:
    """Train the jobs one after the other in new processes under gloo; the first rank's losses of each."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    port = free_port()
    ranks = [context.Process(target=rank_of, args=(rank, port, jobs, theirs)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    try:
        assert ours.poll(PATIENCE), "the ranks have not answered"
        return list(ours.recv())
    finally:
        for process in ranks:
            process.join(PATIENCE)
            process.kill()


def rank_of(rank: int, port: int, jobs: list[StageJob], line: Any) -> None:
    """One rank, on rows in memory: the order in which a stream gives them is tested with the stream."""
    import os

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from benchmarks.train.ours import read_from_memory
    from benchmarks.train.samples import training_pairs
    from stetholm.training.ranks import join_group

    join_group(use_gpu=False)
    with read_from_memory(training_pairs(24)):
        curves = [losses(job) for job in jobs]
    if rank == 0:
        line.send(curves)
