"""``heart/diagnosis`` and ``heart/mdpo``: learning to name what real heart sounds say, and what mDPO changes in it.

    STETHOLM_RECORDINGS=<folder> python -m benchmarks.run heart

The folder holds ``stethobench_heart.jsonl`` and its recordings (400 of four classes; train, val and test go by number).
Every step is a job as it is submitted to a cluster, with the settings below; all else is the defaults'.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import Result
from stetholm.settings import load_settings
from stetholm.storage import Storage, open_storage

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("STETHOLM_RECORDINGS") or ROOT.parent / "shared" / "recordings")
SEED = os.environ.get("STETHOLM_RUN__SEED", "0")
ALIGN = ("align.epochs=14",)
SFT = ("sft.epochs=2",)
PREFER = ("prefer.pairs=800", "prefer.max_new_tokens=48")
DPO = ("dpo.epochs=2", "dpo.batch_size=4", "dpo.learning_rate=1e-4")
PROBE = ("probe.zero_shot=false", "probe.encoders=[checkpoint, cola, log-mel, log-mel-padded]")
GROUNDING = ("explain.grounding=reference", "explain.grounding_examples=null", "explain.examples=1")
TABLE = "heart-valve: diagnosis"
DROP = "degraded"


def diagnosis() -> Iterator[Result]:
    """The share of the test split's diagnoses that are named rightly, against statistics of the spectrogram."""
    if not _there():
        return
    trained = _trained()
    found = _job("evaluate", "heart")
    probes = _job("probe", "heart-probe", *_of(trained), *PROBE)["tasks"]["heart diagnosis"]
    report = _storage().read_json(f"{found['output']}/report.json")
    named = next(table for table in report["classes"] if table["kind"] == "diagnosis")
    by_probe = {f"{row['features']}: {row['method']}": row["accuracy"] for row in probes if row["judged_on"] == "test"}
    yield Result(
        "heart/diagnosis",
        named["conditions"]["audio"]["accuracy"],
        by_probe["log-mel statistics: logistic regression"],
        "share of answers that name the right one of four classes",
        "logistic regression on means and deviations over time of the published log-mel, of the same recordings",
        {
            "n": named["n"],
            "seed": SEED,
            "settings": [*ALIGN, *SFT],
            "conditions": named["conditions"],
            "normal_or_abnormal": {name: report["binary"][name] for name in named["conditions"]},
            "bertscore_f1": report["overall"]["audio"].get("bertscore_f1"),
            "probes": by_probe,
        },
    )


def mdpo() -> Iterator[Result]:
    """The margin of clean over degraded audio after mDPO against that before, and what became of the accuracy.

    Twice: as published, and without the term that asks for the clean audio.
    """
    if not _there():
        return
    before = _trained()
    _job("evaluate", "heart")
    _job("explain", "heart-grounding", *_of(before), *GROUNDING)
    pairs = _job("prefer", "heart", *PREFER)
    for name, more in (("heart-mdpo", ()), ("heart-without", ("dpo.lambda_conditional=0",))):
        _take_pairs("heart", name)
        after = _job("dpo", name, *_of(before), *DPO, *more)
        given = (*_of(before)[:1], f"model.init_from={after['output']}")
        judged = _job("evaluate", name, *given, f"evaluate.compare_to={before['output']}", "evaluate.controls=false")
        ground = _job("explain", name, *given, *GROUNDING, f"explain.compare_to={before['output']}")
        drops = _storage().read_json(f"{ground['output']}/comparison.json")["answers"]["reference"]
        yield Result(
            "heart/mdpo",
            drops[DROP]["ours"],
            drops[DROP]["theirs"],
            "nats a token that the right answer loses when the audio is degraded",
            "the same checkpoint before mDPO",
            {
                "settings": [*PREFER, *DPO, *more],
                "pairs": pairs["pairs"],
                "ties": pairs["skipped"],
                "steps": after["steps"],
                "drops": drops,
                "label_accuracy": judged["comparison"]["label_accuracy"],
            },
        )


def _take_pairs(run: str, other: str) -> None:
    """Let a run train on another's preference pairs: its record of them is what dpo reads."""
    storage = _storage()
    record = storage.read_text(storage.join(f"runs/{run}/prefer/result.json"))
    storage.write_text(storage.join(f"runs/{other}/prefer/result.json"), record)


def _there() -> bool:
    """Whether the recordings are; if not, it is said."""
    there = (FOLDER / "stethobench_heart.jsonl").exists()
    if not there:
        print(f"bench: heart: SKIPPED, {FOLDER} has no stethobench_heart.jsonl (STETHOLM_RECORDINGS=)", file=sys.stderr)
    return there


def _trained() -> dict[str, Any]:
    """What SFT has made, from random encoder weights; done once, however many benchmarks ask."""
    source = (f"corpus.jsonl={FOLDER / 'stethobench_heart.jsonl'}", f"corpus.audio={FOLDER}")
    _job("ingest", "heart", "corpus.source=stethobench", *source)
    _job("align", "heart", *ALIGN)
    return _job("sft", "heart", *SFT)


def _of(trained: dict[str, Any]) -> tuple[str, str]:
    """What a job of another run needs to work on this model and its corpus."""
    corpus = _storage().join("runs/heart/corpus")
    return f"corpus.uri={corpus}", f"model.init_from={trained['output']}"


def _storage() -> Storage:
    return open_storage(load_settings(None, []).storage)


def _job(name: str, run: str, *settings: str) -> dict[str, Any]:
    """Run ``jobs/<name>.py``; what it prints as its result. Done once already: the same again, at once."""
    words = [word for each in (f"run.name={run}", *settings) for word in ("--set", each)]
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *words]
    print(f"bench: {' '.join(command[1:])}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    return result
