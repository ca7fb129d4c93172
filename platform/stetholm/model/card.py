"""The model card ``README.md`` of a checkpoint or an export: plain data to Markdown, nothing is looked up here.

What is not known is said to be not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from stetholm.markdown import table

Kind = Literal["checkpoint", "merged", "adapter"]

HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Where the embedded language model comes from."""

SETTINGS_THAT_MATTER = (
    *("epochs", "max_steps", "learning_rate", "encoder_learning_rate", "weight_decay", "warmup_fraction"),
    *("batch_size", "tokens_per_batch", "workers", "zero_stage", "precision", "augmentation", "out_of_domain"),
    *("contrastive_weight", "caption_weight", "temperature", "tasks"),
    *("beta", "lambda_conditional", "lambda_anchor", "anchor_margin", "chosen", "seed"),
)
"""Of a stage, in the order in which the card shows them."""

WARNING = "For research. **Not for clinical use:** nothing that this model writes is a diagnosis or medical advice."

LIMITS = """\
- It hears the first 7 seconds of each recording, at 16 kHz, mono, between 50 and 8000 Hz, as one log-mel spectrogram.
- It was taught the answers in the data below, and can be fluent and wrong: it may name findings that are not there.
- Recordings unlike those it was trained on (other devices, sites, ages, diseases, languages) are out of its domain.
- An answer that does not change when the recording is exchanged says nothing about the recording. The control rows of
  the evaluation show how often that is so.
- It has not been validated on patients and is not a medical device."""


@dataclass(frozen=True)
class Card:
    """What a card is made of.

    Attributes:
        kind: a checkpoint of training, or what an export makes of one.
        config: the content of ``config.json``.
        lineage: ``lineage.json`` of the checkpoint and of those before it, newest first; each with ``checkpoint``, its
            URI. Missing keys are said to be not recorded.
        evaluation: the table of this checkpoint in Markdown; None: not evaluated.
        source: what to write into the code that loads it.
        checkpoint: URI of the checkpoint that was exported.
        parameters: how many weights the folder holds.
        lora_folder: below the folder: the language model's LoRA in PEFT's format.
    """

    kind: Kind
    config: Mapping[str, Any]
    lineage: Sequence[Mapping[str, Any]] = ()
    evaluation: str | None = None
    source: str = "."
    checkpoint: str | None = None
    parameters: int | None = None
    lora_folder: str | None = None

    @property
    def base(self) -> str | None:
        """The language model it was made from, as the settings named it."""
        return self.config.get("language_model")

    @property
    def newest(self) -> Mapping[str, Any]:
        """Lineage of the checkpoint itself."""
        return self.lineage[0] if self.lineage else {}


def model_card(card: Card) -> str:
    """The whole ``README.md``."""
    sections = {
        "How to load it": _loading(card),
        "Intended use": f"Research on auscultation: heart and lung sounds and questions about them. {WARNING}",
        "Limits": LIMITS,
        "Training data": _data(card),
        "Training": _training(card),
        "Evaluation": _evaluation(card),
        "Lineage": _lineage(card),
        "Licence": _licence(card),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{_front_matter(card)}---\n# {_title(card)}\n\n> {WARNING}\n\n{_summary(card)}\n\n{body}\n"


def hub_id(name: str | None) -> str | None:
    """The Hugging Face id of a language model as the settings name it; None for folders and URIs."""
    if name in HUB_IDS:
        return HUB_IDS[name]
    return name if name and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) else None


def _front_matter(card: Card) -> str:
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "audio-text-to-text",
        "license": "other",
        "license_name": "of-base-model-and-data",
        "language": ["en"],
        "tags": ["stetholm", "auscultation", "heart-sounds", "lung-sounds", "research-only"],
    }
    if card.config.get("lora"):
        fields["tags"] += ["lora"]
    base = hub_id(card.base)
    if base:
        fields["base_model"] = base
        fields["base_model_relation"] = "finetune" if card.config.get("weights") == "full" else "adapter"
    return yaml.safe_dump(fields, sort_keys=False)


def _title(card: Card) -> str:
    parts = [f"{key} {card.newest[key]}" for key in ("run", "stage") if card.newest.get(key)]
    return ": ".join(["StethoLM", ", ".join(parts)]) if parts else "StethoLM"


def _summary(card: Card) -> str:
    config = card.config
    parts = [
        "An audio-language model of heart and lung sounds: it answers questions about recordings. Audio encoder "
        f"`{config.get('audio_encoder')}`, a projector to {config.get('prefix_tokens')} prefix tokens a recording, "
        f"language model `{card.base or 'not recorded'}`, prompts in {config.get('prompt_style')} style."
    ]
    if config.get("weights") == "full":
        parts.append("This folder holds the whole model; no other weights are needed.")
    else:
        parts.append(
            "This folder holds encoder, projector and LoRA alone; the language model's own weights come from "
            f"`{card.base}`."
        )
    if card.parameters is not None:
        parts.append(f"{card.parameters:,} weights in {config.get('dtype') or 'several types'}.")
    return " ".join(parts)


def _loading(card: Card) -> str:
    code = f"""\
With the package `stetholm-platform`; the classes are those of transformers (`generate`, PEFT, the Auto classes after
`import stetholm.model`). `source` is the folder that holds this file, or its `s3://` URI.

```python
from stetholm.model import StethoLMForConditionalGeneration, StethoLMProcessor

source = {card.source!r}
processor = StethoLMProcessor.from_pretrained(source)
model = StethoLMForConditionalGeneration.from_pretrained(source)
inputs = processor(text="Is this heart sound normal or abnormal?", audio=["recording.wav"])
answer = model.generate(**inputs, max_new_tokens=64)
print(processor.tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
    if card.lora_folder is None:
        return code
    return f"""{code}

`{card.lora_folder}/` holds the language model's LoRA once more, in PEFT's format, for tools that know PEFT and no audio
(text alone): `PeftModel.from_pretrained(language_model, "{card.lora_folder}")`."""


def _data(card: Card) -> str:
    corpora: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for entry in card.lineage:
        if entry.get("corpus"):
            corpora.setdefault((entry["corpus"], entry.get("corpus_sha256")), []).append(entry)
    if not corpora:
        return "Not recorded."
    return "\n\n".join(_corpus(uri, sha256, users) for (uri, sha256), users in corpora.items())


def _corpus(uri: str, sha256: str | None, users: Sequence[Mapping[str, Any]]) -> str:
    stages = ", ".join(str(entry.get("stage", "not recorded")) for entry in reversed(users))
    head = f"`{uri}` (stage {stages}); its manifest's SHA-256: `{sha256 or 'not recorded'}`."
    counts = next((entry["counts"] for entry in users if entry.get("counts")), None)
    if not counts:
        return f"{head} How many pairs it held is not recorded."
    return f"{head} Pairs by split:\n\n{_counts(counts)}"


def _counts(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """One row for all pairs, each task and each data set; one column a split."""
    splits = list(counts)
    rows = [["all", *(sum(counts[split].get("task", {}).values()) for split in splits)]]
    for column in ("task", "dataset"):
        for value in sorted({value for split in splits for value in counts[split].get(column, {})}):
            numbers = (counts[split].get(column, {}).get(value, 0) for split in splits)
            rows.append([f"{column}: {value}", *numbers])
    return table(["", *splits], rows)


def _training(card: Card) -> str:
    stages = [entry for entry in reversed(card.lineage) if entry.get("settings") or entry.get("numbers")]
    if not stages:
        return "Settings and losses are not recorded."
    rows = []
    for key in SETTINGS_THAT_MATTER:
        values = [(entry.get("settings") or {}).get(key) for entry in stages]
        if any(value is not None for value in values):
            rows.append([f"`{key}`", *map(_shown, values)])
    for key in dict.fromkeys(key for entry in stages for key in entry.get("numbers") or {}):
        rows.append([key, *(_shown((entry.get("numbers") or {}).get(key)) for entry in stages)])
    lora = _lora(card)
    return f"{table(['', *(str(entry.get('stage', '')) for entry in stages)], rows)}\n\n{lora}".strip()


def _lora(card: Card) -> str:
    adapters = card.config.get("lora") or {}
    sizes = [f"`{name}` r {one['r']}, alpha {one['alpha']}, dropout {one['dropout']}" for name, one in adapters.items()]
    if sizes:
        return f"LoRA on the attention projections of the language model: {'; '.join(sizes)}."
    return "The LoRA of these stages is folded into the weights." if card.kind == "merged" else ""


def _evaluation(card: Card) -> str:
    if card.kind == "checkpoint":
        return "Not evaluated when it was saved. `jobs/evaluate.py` does it; the card of an export has its table."
    if card.evaluation is None:
        return f"Not evaluated: the run has no finished `jobs/evaluate.py` of `{card.checkpoint}`."
    how = "before it was exported" + (
        " (merging and rounding may change a few answers)" if card.kind == "merged" else ""
    )
    return f"Of the checkpoint, {how}.\n\n{card.evaluation.strip()}"


def _lineage(card: Card) -> str:
    lines = [f"1. exported ({card.kind}) from `{card.checkpoint}`"] if card.checkpoint else []
    lines += [_ancestor(entry) for entry in card.lineage]
    if not card.lineage or not card.lineage[-1].get("stage"):
        lines.append("1. what came before is not recorded")
    elif card.lineage[-1].get("parent"):
        lines.append(f"1. `{card.lineage[-1]['parent']}`, of which nothing more is recorded")
    else:
        lines.append(f"1. the language model `{card.base}`, with a new projector and LoRA")
    return "\n".join(lines)


def _ancestor(entry: Mapping[str, Any]) -> str:
    known = [f"{key} {entry[key]}" for key in ("stage", "run") if entry.get(key)]
    known += [f"code `{entry['code']}`"] if entry.get("code") else []
    where = f"`{entry['checkpoint']}`: " if entry.get("checkpoint") else ""
    return f"1. {where}{', '.join(known) or 'nothing more is recorded'}"


def _licence(card: Card) -> str:
    return (
        f"These weights come from the language model `{card.base or 'not recorded'}` and the recordings above; the "
        "licences of both hold for them, and this card does not know them: read them before you pass the weights on."
    )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
