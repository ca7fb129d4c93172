"""Published models over small bases, as files, and how far the imported ones are from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from stetholm.model import StethoLMForConditionalGeneration, StethoLMProcessor, load_checkpoint
from stetholm.model.importing import ImportReport, import_weights
from stetholm.settings import LoraSettings
from tests.model.importing.published import ALPHA, PREFIX, Encoder, Published, enliven, spectrograms, tiny_medgemma
from tests.model.tiny import TEXT_CONFIGS, tiny_settings, tiny_tokenizer

State = dict[str, torch.Tensor]
Imported = tuple[ImportReport, StethoLMForConditionalGeneration, StethoLMProcessor]

FEATURES = 1e-5
"""Largest difference of pooled features, in float32."""
LOGITS = 1e-4
"""Largest difference of logits, in float32."""
KINDS = ("medgemma", "llama", "llama-untied", "qwen2")
SETTINGS: dict[str, Any] = {"lora": LoraSettings(r=2, alpha=ALPHA, dropout=0.0)}
"""Another rank than the file's, which is to win."""
ENDS = [1, 5]
"""Of the bases' generation_config.json."""


class Case:
    """A base on disk, and a published model over it."""

    def __init__(self, folder: Path, kind: str, lora: bool) -> None:
        torch.manual_seed(0)
        medgemma = kind == "medgemma"
        base: Any = tiny_medgemma() if medgemma else AutoModelForCausalLM.from_config(TEXT_CONFIGS[kind]())
        base.eval().save_pretrained(folder)
        GenerationConfig(eos_token_id=ENDS).save_pretrained(folder)
        tokenizer = tiny_tokenizer(bos_first=medgemma)
        if medgemma:
            tokenizer.add_tokens(["<end_of_image>"], special_tokens=True)
        tokenizer.save_pretrained(folder)
        self.base = folder
        self.model = enliven(Published(base, lora))

    def state(self, whole: bool) -> State:
        """As the published code saves it: everything, or what it trains."""
        state = self.model.state_dict()
        return state if whole else {key: value for key, value in state.items() if trained(key)}

    def logits(self, tokens: torch.Tensor, mask: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        """(K, vocabulary) of the K real positions after the prefix."""
        logits: torch.Tensor = self.model(clips, tokens, mask)[:, PREFIX:]
        return logits[mask.bool()]


def trained(key: str) -> bool:
    """Whether the published code trains a weight."""
    return key.startswith(("audio_encoder.", "prefix_project.")) or ".lora_" in key


def bring(file: Path, base: Path, folder: Path, **more: Any) -> Imported:
    """Import ``file`` over ``base`` and load what has become of it."""
    report = import_weights(file, folder, tiny_settings(base, **SETTINGS), **more)
    return report, *load_checkpoint(folder)


@torch.no_grad()
def feature_difference(encoder: Encoder, model: StethoLMForConditionalGeneration, recordings: int = 4) -> float:
    """Largest difference of pooled features over some spectrograms."""
    clips = spectrograms(recordings, seed=1)
    expected, found = encoder(clips), model.model.audio_tower(clips)
    assert found.shape == (recordings, 1280) and expected.std(dim=0).mean() > 0.01, "recordings differ"
    return float((found - expected).abs().max())


@torch.no_grad()
def logit_difference(case: Case, model: StethoLMForConditionalGeneration, processor: StethoLMProcessor) -> float:
    """Largest difference of logits over two prompts of different lengths, right-padded as the published code does."""
    clips = spectrograms(2, seed=2)
    questions = ("Is it normal?", "Report the findings of this heart.")
    rows = [
        {"input_ids": processor.encode_prompt(text, 1, "cinc"), "features": clip[None].numpy()}
        for text, clip in zip(questions, clips, strict=True)
    ]
    batch = processor.collate(rows, "right")
    tokens, mask = batch["input_ids"][:, PREFIX:], batch["attention_mask"][:, PREFIX:]
    expected = case.logits(tokens, mask, clips)
    other = case.logits(tokens, mask, clips.flip(0))
    assert (expected - other).abs().max() > 100 * LOGITS, "the recording matters"
    found = model(**batch).logits[:, PREFIX:][mask.bool()]
    return float((found - expected).abs().max())
