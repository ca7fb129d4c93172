"""The explain job: what the answers of a run's checkpoint rest on, as pictures and as numbers.

    python jobs/explain.py --set run.name=demo

Writes ``runs/<run.name>/explain/``: ``attention-*.png`` and ``occlusion-*.png`` of each example, ``explain.json``, and
for a split ``grounding.md``, ``grounding.json`` and ``grounding.parquet``, with ``explain.compare_to``
``comparison.md`` and ``comparison.json``. docs/explain.md says what they mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch

from stetholm.evaluation import grounding_compare
from stetholm.evaluation.cases import Case, check_choice, corpus_cases, corpus_sha256, read_sounds, sound_case
from stetholm.evaluation.grounding import brief, forget, ground
from stetholm.evaluation.job import GenerationJob
from stetholm.evaluation.metrics import mean
from stetholm.model.checkpoint import load_checkpoint
from stetholm.model.explain import Attention, Occlusion, Timeline, attention, occlusion
from stetholm.progress import Progress
from stetholm.ray_session import ray_session
from stetholm.runs import corpus_uri, digest, finished, record, require_checkpoint, run_uri
from stetholm.settings import Settings
from stetholm.storage import Storage

JOB = "explain"

NO_FINDINGS = frozenset(
    {
        *("inspiration", "expiration", "S1", "S2", "systole", "diastole"),
        *("no added sounds", "silence"),
        "rubbing",
    }
)
"""Events that are no finding: phases that every breath or heart has, what says that nothing is heard, and rubbing at
the microphone. Only the others count as annotated."""


def explain(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Explain some answers, print where the pictures lie, and return the figures.

    Returns:
        ``output`` (URI), ``examples``, ``attention_on_audio`` (mean share of the answers' attention), and where
        recordings have annotated events ``evidence_in_events`` and ``time_in_events``: the mean share of the positive
        evidence that lies in them, and of the time that they take. Of a corpus ``grounding``: by answer and condition,
        the mean drop of the log-probability with its interval (see :mod:`stetholm.evaluation.grounding`); with
        ``explain.compare_to`` as ``grounding_comparison`` the paired differences from another checkpoint's.

    Raises:
        UserError: no checkpoint, no corpus, nothing in the split, a recording that cannot be used, or settings that
            contradict each other.
    """
    checkpoint, chosen = require_checkpoint(settings, storage), settings.explain
    check_choice(chosen)
    theirs = grounding_compare.find_measured(chosen, storage)
    sounds, corpus = read_sounds(chosen.audio, storage, settings.audio), corpus_uri(settings, storage)
    inputs = {
        "checkpoint": checkpoint,
        "seed": settings.run.seed,
        **chosen.model_dump(exclude={"batch_size", "compare_to"}),
        "audio": [sound.sha256 for sound in sounds],
        "corpus": None if sounds else corpus_sha256(storage, corpus, chosen.split),
    }
    result = finished(settings, storage, JOB, inputs)
    if result is None:
        own = [sound_case(str(chosen.question), sounds)] if sounds else None
        cases = own or corpus_cases(
            storage, corpus, chosen.split, chosen.examples, settings.run.seed, chosen.sample_ids
        )
        result = _run(settings, storage, checkpoint, cases, inputs)
        job = GenerationJob(JOB, settings, storage, checkpoint, corpus, chosen.split, inputs)
        if not sounds and chosen.grounding != "none":
            with ray_session():
                report = ground(job)
            result |= {"grounding": brief(report), "grounding_examples": report["examples"]}
            forget(job)
        record(settings, storage, JOB, result, inputs)
        storage.remove_dir(_parts(settings, storage, inputs))
    output = str(result["output"])
    _print_paths(storage, output)
    return {**result, **(_compared(settings, storage, output, theirs) if theirs else {})}


def _compared(settings: Settings, storage: Storage, output: str, theirs: str) -> dict[str, Any]:
    """Write and print how the grounding differs from that at ``theirs``."""
    pair = [grounding_compare.read_measured(uri, storage) for uri in (output, theirs)]
    found = grounding_compare.compare_grounding(pair[0], pair[1], settings.explain.draws, settings.run.seed)
    text = grounding_compare.to_markdown(found)
    storage.write_json(f"{output}/comparison.json", found)
    storage.write_text(f"{output}/comparison.md", text)
    print(text)
    return {"grounding_comparison": grounding_compare.brief(found)}


def _run(
    settings: Settings, storage: Storage, checkpoint: str, cases: list[Case], inputs: dict[str, Any]
) -> dict[str, Any]:
    """Explain each case that an earlier attempt has not, and put all together."""
    output = run_uri(settings, storage, JOB)
    parts = _parts(settings, storage, inputs)

    @cache
    def loaded() -> Any:
        return _load(settings, storage, checkpoint)

    found = []
    with Progress(JOB, len(cases), "examples") as progress:
        for number, case in enumerate(cases):
            progress.update(number)
            part = f"{parts}/{case.name}.json"
            if not storage.exists(part):
                storage.write_json(part, _explain_case(case, settings, storage, output, *loaded()))
            found.append(storage.read_json(part))
        progress.update(len(cases))
    storage.write_json(f"{output}/explain.json", {**inputs, "no_findings": sorted(NO_FINDINGS), "examples": found})
    return {"output": output, **_totals(found)}


def _parts(settings: Settings, storage: Storage, inputs: dict[str, Any]) -> str:
    """URI of the numbers of each case, until all are there."""
    return f"{run_uri(settings, storage, JOB)}/parts-{digest(inputs)}"


def _load(settings: Settings, storage: Storage, checkpoint: str) -> tuple[Any, Any]:
    """Model and processor, on the GPU where there is one."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.explain.precision]
    model, processor = load_checkpoint(checkpoint, storage, dtype=dtype, merge=True)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    return model, processor


def _explain_case(
    case: Case, settings: Settings, storage: Storage, output: str, model: Any, processor: Any
) -> dict[str, Any]:
    """Numbers of one case; its pictures are written."""
    from stetholm.model.explain.draw import draw_attention, draw_occlusion

    chosen = settings.explain
    wanted = case.reference if chosen.answer == "reference" else None
    seen = attention(
        model, processor, case.instruction, case.clips, answer=wanted, dataset=case.dataset,
        max_new_tokens=chosen.max_new_tokens,
    )  # fmt: skip
    lost = occlusion(
        model, processor, case.instruction, case.clips, seen.answer_ids, chosen.window, chosen.hop,
        dataset=case.dataset, batch_size=chosen.batch_size,
    )  # fmt: skip
    pictures = {
        f"attention-{case.name}.png": draw_attention(seen),
        f"occlusion-{case.name}.png": draw_occlusion(lost, [one["events"] for one in case.recordings]),
    }
    for name, png in pictures.items():
        storage.write_bytes(f"{output}/{name}", png)
    return _numbers(case, chosen.answer, seen, lost, list(pictures))


def _numbers(case: Case, explained: str, seen: Attention, lost: Occlusion, pictures: list[str]) -> dict[str, Any]:
    timelines = lost.to_dict()["recordings"]
    recordings = [
        {**known, **numbers, **evidence_inside(line, known["events"])}
        for known, numbers, line in zip(case.recordings, timelines, lost.recordings, strict=True)
    ]
    audio = [number for number, span in enumerate(seen.spans) if span.name.startswith("audio ")]
    return {
        "name": case.name,
        "task": case.task,
        "dataset": case.dataset,
        "instruction": case.instruction,
        "reference": case.reference,
        "explained": explained,
        "answer": seen.answer,
        "logp": round(lost.logp, 5),
        "attention_on_audio": round(float(seen.shares[:, audio].sum(axis=1).mean()), 5),
        "recordings": recordings,
        "attention": seen.to_dict(),
        "pictures": pictures,
    }


def evidence_inside(line: Timeline, events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How much of the positive evidence lies in annotated events, beside how much of the time they take.

    Returns:
        ``by_label``: ``evidence`` and ``time`` of each label that the clip holds; ``annotated``: of all findings
        together (see :data:`NO_FINDINGS`), None where there is none. ``evidence`` is None where none is positive.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event["start"] < line.clip.seconds:
            spans.setdefault(event["label"], []).append((event["start"], event["end"]))
    annotated = [span for label, found in spans.items() if label not in NO_FINDINGS for span in found]
    return {
        "by_label": {label: _shares(line, found) for label, found in sorted(spans.items())},
        "annotated": _shares(line, annotated) if annotated else None,
    }


def _shares(line: Timeline, spans: list[tuple[float, float]]) -> dict[str, float | None]:
    evidence, time = line.inside(spans)
    return {"evidence": None if evidence is None else round(evidence, 4), "time": round(time, 4)}


def _totals(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the job prints; a recording that several examples share counts in each."""
    totals: dict[str, Any] = {
        "examples": len(found),
        "attention_on_audio": mean([one["attention_on_audio"] for one in found]),
    }
    known = [recording["annotated"] for one in found for recording in one["recordings"]]
    counted = [each for each in known if each is not None and each["evidence"] is not None]
    if counted:
        totals["evidence_in_events"] = mean([each["evidence"] for each in counted])
        totals["time_in_events"] = mean([each["time"] for each in counted])
    return totals


def _print_paths(storage: Storage, output: str) -> None:
    """Questions, answers and where the pictures are."""
    for one in storage.read_json(f"{output}/explain.json")["examples"]:
        print(f"{one['task'] or 'question'}: {one['instruction']}\n  {one['explained']} answer: {one['answer']}")
        for picture in one["pictures"]:
            print(f"  {output}/{picture}")
    print(f"numbers: {output}/explain.json")
    if storage.exists(f"{output}/grounding.md"):
        print(storage.read_text(f"{output}/grounding.md"))
    folder = storage.on_this_machine(output)
    if folder is not None:
        print(f"  on this machine: {folder}")
