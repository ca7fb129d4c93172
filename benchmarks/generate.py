"""How fast answers come.

``generate/evaluate``: one greedy answer each. ``generate/prefer``: candidates. ``generate/published``: against the
published recipe's ``generate``, with the same decoding and with our defaults.
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
from stetholm.serving.engine import Request, Sampling
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.settings import ModelSettings, PreferSettings

QUESTIONS = (
    "Is this heart sound normal or abnormal?",
    "What is the primary sound event in this audio?",
    "Generate a brief summary of the lung sound findings.",
    "Provide a diagnosis and explain your reasoning.",
)
ONE_BY_ONE = "the same engine, one request at a time, as the published scripts do"
TOKENS, PROMPTS, BATCH = 24, 16, 32


def engine() -> TransformersEngine:
    """The embedded model, untrained: speed does not depend on what it has learned."""
    model, processor = build_model(ModelSettings(), dtype=torch.float32)
    merge_lora(model)
    return TransformersEngine(model, processor, max_batch=BATCH)


def requests(sampling: Sampling) -> list[Request]:
    """Questions about random spectrograms."""
    rng = np.random.default_rng(0)
    return [
        Request(QUESTIONS[i % len(QUESTIONS)], rng.random((1, N_MELS, N_FRAMES), np.float32), sampling=sampling)
        for i in range(PROMPTS)
    ]


def tokens_per_second(running: TransformersEngine, batches: Sequence[list[Request]]) -> float:
    """Tokens a second over several calls of the engine."""
    started, tokens = time.perf_counter(), 0
    for batch in batches:
        answers = running.generate_many(batch)
        tokens += sum(answer.completion_tokens for one in answers for answer in one)
    return tokens / (time.perf_counter() - started)


def compare(bench: str, running: TransformersEngine, asked: list[Request]) -> Result:
    """All requests in one call against one call each, after one answer to warm up."""
    running.generate_many(asked[:1])
    config = {"requests": len(asked), "max_new_tokens": TOKENS, "max_batch": BATCH, "model": "smollm2-135m, fp32"}
    ours = tokens_per_second(running, [asked])
    return Result(bench, ours, tokens_per_second(running, [[one] for one in asked]), "tokens/s", ONE_BY_ONE, config)


def evaluate() -> Iterator[Result]:
    """Greedy answers, as the evaluation job makes them."""
    running = engine()
    yield compare("generate/evaluate", running, requests(Sampling(max_new_tokens=TOKENS)))
    running.close()


def prefer() -> Iterator[Result]:
    """Candidates at the published temperatures, as the preference job makes them."""
    running, temperatures = engine(), PreferSettings().temperatures
    plain = requests(Sampling(max_new_tokens=TOKENS, seed=0))[: PROMPTS // 4]
    asked = [
        replace(one, sampling=replace(one.sampling, temperature=temperature))
        for one in plain
        for temperature in temperatures
    ]
    yield compare("generate/prefer", running, asked)
    running.close()


# --- generate/published ---

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
    def answer(self, asked: Sequence[Request]) -> int:
        """Answer all of ``asked`` in one batch; how many tokens were made."""
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
            do_sample=False,
            **BEAMS,
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


def tokens_made(running: TransformersEngine, asked: list[Request]) -> int:
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
