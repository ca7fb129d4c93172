"""From a weights file to a checkpoint of ours."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import EfficientNetConfig, PreTrainedTokenizerBase

from stetholm.errors import UserError
from stetholm.model.checkpoint import save_checkpoint
from stetholm.model.encoders import ColaEncoder
from stetholm.model.fresh import assemble, build_processor
from stetholm.model.importing.contents import Contents
from stetholm.model.importing.layouts import layout_of
from stetholm.model.importing.placing import place
from stetholm.model.importing.reading import read_state
from stetholm.model.importing.report import ImportReport, PartialImportError
from stetholm.model.language import load_language_model, load_tokenizer
from stetholm.model.loading import is_own
from stetholm.model.modeling_stetholm import StethoLMForConditionalGeneration
from stetholm.model.skeleton import empty_language_model
from stetholm.settings import ModelSettings


def import_weights(
    file: Path,
    folder: Path,
    settings: ModelSettings,
    *,
    layout: str = "auto",
    allow_partial: bool = False,
    seed: int = 0,
) -> ImportReport:
    """Write the checkpoint that ``file`` makes to ``folder``, with all its digits.

    A file with the language model's weights makes a whole checkpoint, any other one a checkpoint of encoder, projector
    and adapters over ``settings.language_model``, of which only configuration and tokenizer are read here.

    Args:
        file: OPERA-CE (Lightning or bare) or published StethoLM weights; ``.pt``, ``.ckpt`` or ``.safetensors``.
        folder: where to; made if it is not there.
        settings: name the base language model, the prompt style, the projector's dropout and LoRA's alpha, which no
            file tells. LoRA's rank and places are the file's.
        layout: ``opera``, ``stetholm``, or ``auto`` to tell by the keys.
        allow_partial: take what fits; the rest is drawn anew, or comes from the base language model.
        seed: of what is drawn anew.

    Returns:
        The account of every key.

    Raises:
        PartialImportError: something does not fit, and ``allow_partial`` is not set. Nothing is written.
        UserError: the file cannot be used.
    """
    if settings.audio_encoder != "cola":
        raise UserError(
            f"model.audio_encoder is {settings.audio_encoder!r}, but weights can be imported for 'cola' only: set it so"
        )
    state = read_state(file)
    contents = Contents.of(state, layout_of(state, layout))
    model, tokenizer = _model(contents, settings, allow_partial, seed)
    report = place(contents, model)
    if not report.imported or not (report.whole or allow_partial):
        raise PartialImportError(_complaint(file, report, settings.language_model), report)
    save_checkpoint(model, build_processor(tokenizer, model.config), folder)
    return report


def published_encoder() -> EfficientNetConfig:
    """The published encoder's configuration: ``efficientnet_pytorch`` keeps 0.99 of batch-norm averages a step."""
    config = ColaEncoder.default_config()
    config.batch_norm_momentum = 0.01
    return config


def _model(
    contents: Contents, settings: ModelSettings, allow_partial: bool, seed: int
) -> tuple[StethoLMForConditionalGeneration, PreTrainedTokenizerBase]:
    """A model of the file's sizes; the weights that the file is to bring are not set yet."""
    lora = settings.lora.model_copy(update=contents.lora_size())
    settings = settings.model_copy(update={"lora": lora})
    whole = contents.has_language_model
    dtype = contents.language_dtype if whole else torch.float32
    # What the file lacks of a language model, a partial import takes from the base.
    load = load_language_model if whole and allow_partial else empty_language_model
    tokenizer = load_tokenizer(settings.language_model)
    causal_lm = load(settings.language_model, dtype)
    model = assemble(causal_lm, tokenizer, settings, seed=seed, audio_config=published_encoder())
    for name, parameter in model.named_parameters():
        if is_own(name):
            parameter.data = parameter.data.float()  # PEFT makes adapters in the base's type
    model.config.weights = "full" if whole else "adapter"
    return model, tokenizer


def _complaint(file: Path, report: ImportReport, base: str) -> str:
    keys = (*report.unknown, *report.misshapen, *report.missing)
    language = any(key.startswith(("lm.", "medgemma_full.", "lm_head.", "model.language_model.")) for key in keys)
    asked = f"; is model.language_model={base} its base?" if language else ""
    remedy = "; import_weights.allow_partial=true takes what fits" if report.imported else ""
    return f"import_weights.weights: {file} (layout {report.layout}) does not fit: {report.problems()}{asked}{remedy}"
