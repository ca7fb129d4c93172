"""How fast answers come.

All against the published recipe's ``generate``, in turns. ``generate/evaluate``: answers of a split against its beam-5
script, one sample at a time. ``generate/prefer``: candidates against its five passes an example.
``generate/published``: single calls, with 1 and 16 prompts on both sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.published_model import PublishedModel
from benchmarks.report import Result
from stetholm.audio.features import N_FRAMES, N_MELS
from stetholm.model import StethoLMForConditionalGeneration, merge_lora
from stetholm.model.dtype import fast_dtype
from stetholm.model.fresh import build_model
from stetholm.model.language import load_tokenizer
from stetholm.model.packed import pack
from stetholm.model.prompts import domain_sentence
from stetholm.serving.engine import Engine, Request, Sampling
from stetholm.serving.load import vllm_engine
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.serving.vllm_start import vllm_installed
from stetholm.settings import EngineSettings, ModelSettings, PreferSettings

QUESTIONS = (
    "Is this heart sound normal or abnormal?",
    "What is the primary sound event in this audio?",
    "Generate a brief summary of the lung sound findings.",
    "Provide a diagnosis and explain your reasoning.",
)
PROMPTS = 16
REQUESTS_SEED = 0


def requests(sampling: Sampling) -> list[Request]:
    """Questions about random spectrograms."""
    rng = np.random.default_rng(REQUESTS_SEED)
    return [
        Request(QUESTIONS[i % len(QUESTIONS)], rng.random((1, N_MELS, N_FRAMES), np.float32), sampling=sampling)
        for i in range(PROMPTS)
    ]


NEW_TOKENS = 64
"""So many a prompt, on both sides: the end of an answer is suppressed. The recipe's limit is 240."""
ROUNDS = 2
BEAMS: dict[str, Any] = {"num_beams": 5, "length_penalty": 0.5, "early_stopping": True}
PUBLISHED_IS = (
    "the published recipe: beam 5, length penalty 0.5, early stopping, fp32, LoRA not merged, one batch padded on the "
    "right, prefix and prompt embeddings concatenated, lm.generate(inputs_embeds=...)"
)


class Published:
    """The published recipe's way to answer: prompts in one batch, then ``lm.generate(inputs_embeds=…)``, LoRA in place.

    Args:
        model: whose encoder and projector to copy.
        settings: names the language model.
    """

    def __init__(self, model: StethoLMForConditionalGeneration, settings: ModelSettings) -> None:
        self.model = PublishedModel(model, settings).eval()
        self.tokenizer = load_tokenizer(settings.language_model)
        self.ends = model.generation_config.eos_token_id

    @torch.no_grad()
    def answer(self, asked: Sequence[Request], **decoding: Any) -> int:
        """Answer all of ``asked`` in one batch, by default with its beams; how many tokens were made."""
        clips = torch.from_numpy(np.concatenate([one.features for one in asked]))
        prompts = [f"{domain_sentence(None, one.instruction)} {one.instruction}" for one in asked]
        text = self.tokenizer(prompts, padding=True, padding_side="right", return_tensors="pt")
        embedded = self.model.embed(clips, text["input_ids"], text["attention_mask"])
        out = self.model.lm.generate(
            inputs_embeds=embedded.embeds,
            attention_mask=embedded.mask,
            max_new_tokens=NEW_TOKENS,
            suppress_tokens=self.ends,
            pad_token_id=self.tokenizer.eos_token_id,
            **(decoding or {"do_sample": False, **BEAMS}),
        )
        return int(out.numel())


def ours(dtype: torch.dtype, packed: bool = False) -> tuple[TransformersEngine, StethoLMForConditionalGeneration]:
    """The engine of the embedded model, adapters merged; answers never end by themselves. ``packed``: as it serves."""
    model, processor = build_model(ModelSettings(), dtype=dtype)
    merge_lora(model)
    model.generation_config.suppress_tokens = model.generation_config.eos_token_id
    if packed:
        pack(model)
    return TransformersEngine(model, processor, max_batch=PROMPTS * BEAMS["num_beams"]), model


def samples_per_second(answer: Callable[[], int], samples: int) -> float:
    """Samples a second of one call.

    Raises:
        RuntimeError: the call did not make ``NEW_TOKENS`` tokens a sample.
    """
    started = time.perf_counter()
    made = answer()
    seconds = time.perf_counter() - started
    if made != samples * NEW_TOKENS:
        raise RuntimeError(f"{made} tokens for {samples} samples, not {NEW_TOKENS} each")
    return samples / seconds


def tokens_made(running: Engine, asked: list[Request]) -> int:
    """Answer ``asked``; how many tokens were made."""
    return sum(answer.completion_tokens for answers in running.generate_many(asked) for answer in answers)


def greedy_agreement(
    running: TransformersEngine, reference: TransformersEngine, asked: list[Request]
) -> dict[str, Any]:
    """How far greedy answers in our number format are those in fp32."""
    texts = [[one[0].text for one in engine.generate_many(asked)] for engine in (running, reference)]
    same = [mine == theirs for mine, theirs in zip(*texts, strict=True)]
    starts = [_common(mine, theirs) / max(len(theirs), 1) for mine, theirs in zip(*texts, strict=True)]
    return {"greedy_texts_equal_fp32": sum(same) / len(same), "greedy_text_shared_with_fp32": sum(starts) / len(starts)}


def _common(first: str, second: str) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def published() -> Iterator[Result]:
    """1 and 16 prompts; the same decoding on both sides (ours in our number format, and in fp32), then our defaults."""
    fast = fast_dtype(gpu=False)
    running, _ = ours(fast, packed=True)
    exact, model = ours(torch.float32)
    theirs = Published(model, ModelSettings())
    greedy = Sampling(max_new_tokens=NEW_TOKENS)
    beams = replace(greedy, num_beams=BEAMS["num_beams"], length_penalty=BEAMS["length_penalty"])
    agreement = greedy_agreement(running, exact, requests(greedy))
    ways = (
        ("beam 5 on both sides", running, fast, beams),
        ("beam 5 and fp32 on both sides", exact, torch.float32, beams),
        ("ours greedy, theirs beam 5", running, fast, greedy),
    )
    for samples in (1, PROMPTS):
        asked = requests(beams)[:samples]
        calls = [partial(theirs.answer, asked)]
        calls += [
            partial(tokens_made, engine, [replace(one, sampling=how) for one in asked]) for _, engine, _, how in ways
        ]
        # In turns, the quickest of each: what disturbs the machine disturbs both sides.
        rounds = [[samples_per_second(call, samples) for call in calls] for _ in range(ROUNDS)]
        baseline, *rates = (max(column) for column in zip(*rounds, strict=True))
        for (decoding, engine, dtype, _), rate in zip(ways, rates, strict=True):
            config = {
                "decoding": decoding,
                "prompts": samples,
                "max_new_tokens": NEW_TOKENS,
                "model": "smollm2-135m",
                "dtype": str(dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                "tokens_per_second": rate * NEW_TOKENS,
                "baseline_tokens_per_second": baseline * NEW_TOKENS,
                **(agreement if engine is running else {}),
            }
            yield Result("generate/published", rate, baseline, "samples/s", PUBLISHED_IS, config)
    running.close()
    exact.close()


# --- generate/evaluate and generate/prefer ---

EVALUATED_IS = (
    "the published beam-5 script, one sample at a time (the public record names no batch size; batches of 16 stand in "
    "generate/published): beam 5, length penalty 0.5, early stopping, fp32, LoRA not merged"
)
PREFERRED_IS = (
    "the published recipe: one example at a time, audio and prompt encoded again for each of the 5 passes, one a "
    "temperature, fp32, LoRA not merged"
)
BASELINE_SAMPLES = 2
"""One after another they all take the same: two a round say how long."""
TOGETHER = 32
"""Answers that the jobs' engine makes together (``evaluate.batch_size``)."""

Way = tuple[str, torch.dtype, Engine, list[Request]]
"""What is measured of ours: how it decodes, its number format, its engine, and what it is asked."""


def with_vllm(dtype: torch.dtype) -> Engine | None:
    """The vLLM engine of the same model, where vLLM is installed."""
    if not vllm_installed():
        return None
    model, processor = build_model(ModelSettings(), dtype=dtype)
    merge_lora(model)
    model.generation_config.suppress_tokens = model.generation_config.eos_token_id
    return vllm_engine(model, processor, "cpu", EngineSettings(max_num_seqs=TOGETHER))


def against(bench: str, baseline_is: str, unit: str, baseline: Callable[[], int], ways: list[Way]) -> Iterator[Result]:
    """Each way against the baseline, in turns, the quickest round of each; ``baseline`` returns its tokens."""
    ours = [partial(tokens_made, engine, asked) for _, _, engine, asked in ways]
    calls: list[Callable[[], int]] = [baseline, *ours]
    rounds = [[answers_per_second(call) for call in calls] for _ in range(ROUNDS)]
    slow, *rates = (max(column) for column in zip(*rounds, strict=True))
    for (decoding, dtype, engine, asked), rate in zip(ways, rates, strict=True):
        config = {
            "decoding": decoding,
            "engine": "vllm" if type(engine).__name__ == "VllmEngine" else "transformers",
            "requests": len(asked),
            "max_new_tokens": NEW_TOKENS,
            "model": "smollm2-135m",
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "rounds": ROUNDS,
            "tokens_per_second": rate * NEW_TOKENS,
            "baseline_tokens_per_second": slow * NEW_TOKENS,
        }
        yield Result(bench, rate, slow, unit, baseline_is, config)


def answers_per_second(call: Callable[[], int]) -> float:
    """Answers of ``NEW_TOKENS`` tokens a second of one call, which says how many tokens it made."""
    started = time.perf_counter()
    return call() / NEW_TOKENS / (time.perf_counter() - started)


def evaluate() -> Iterator[Result]:
    """Answers of a split: the same beams on both sides, then greedy as our job asks by default."""
    fast = fast_dtype(gpu=False)
    running, _ = ours(fast, packed=True)
    exact, _ = ours(torch.float32)
    theirs = Published(build_model(ModelSettings())[0], ModelSettings())
    greedy = Sampling(max_new_tokens=NEW_TOKENS)
    beams = replace(greedy, num_beams=BEAMS["num_beams"], length_penalty=BEAMS["length_penalty"])
    ways: list[Way] = [
        ("beam 5 on both sides", fast, running, requests(beams)),
        ("beam 5 and fp32 on both sides", torch.float32, exact, requests(beams)),
        ("ours greedy, theirs beam 5", fast, running, requests(greedy)),
    ]
    other = with_vllm(fast)
    if other is not None:
        ways.append(("ours greedy, theirs beam 5", fast, other, requests(greedy)))

    def baseline() -> int:
        return sum(theirs.answer([one]) for one in requests(beams)[:BASELINE_SAMPLES])

    yield from against("generate/evaluate", EVALUATED_IS, "samples/s", baseline, ways)
    for engine in {id(way[2]): way[2] for way in ways}.values():
        engine.close()


def candidates() -> list[Request]:
    """Five requests an example, as the preference job asks: they share its recordings."""
    plain = requests(Sampling(max_new_tokens=NEW_TOKENS, seed=0))
    temperatures = PreferSettings().temperatures
    return [replace(one, sampling=replace(one.sampling, temperature=t)) for one in plain for t in temperatures]


def prefer() -> Iterator[Result]:
    """Candidates at the published temperatures."""
    fast = fast_dtype(gpu=False)
    running, _ = ours(fast, packed=True)
    running.max_batch = TOGETHER
    theirs = Published(build_model(ModelSettings())[0], ModelSettings())
    ways: list[Way] = [("sampled at 5 temperatures on both sides", fast, running, candidates())]
    other = with_vllm(fast)
    if other is not None:
        ways.append(("sampled at 5 temperatures on both sides", fast, other, candidates()))

    def baseline() -> int:
        one = requests(Sampling())[0]
        return sum(theirs.answer([one], do_sample=True, temperature=t) for t in PreferSettings().temperatures)

    yield from against("generate/prefer", PREFERRED_IS, "candidates/s", baseline, ways)
    for _, _, engine, _ in ways:
        engine.close()
