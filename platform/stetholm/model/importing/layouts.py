"""What the keys of the published files stand for: one ``Layout`` a kind of file.

OPERA-CE is a Lightning checkpoint of the ``Cola`` module: ``encoder.cnn1``, ``encoder.efficientnet._…`` and the
heads of its contrastive training. The StethoLM file has ``audio_encoder.``, ``prefix_project.model.{0,3,6}.`` and the
language model. For MedGemma that is ``medgemma_full.`` (PEFT around ``Gemma3ForConditionalGeneration``), once more its
text part as ``lm.``, and ``lm_head.``; for others it is ``lm.`` (PEFT around the causal language model).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stetholm.errors import UserError
from stetholm.model.importing.encoder_names import TOWER, encoder_place

PROJECTOR = "model.projector."
LANGUAGE = "model.language_model."
HEAD = "lm_head."

_AROUND_THE_DECODER = frozenset({"base_model", "model", "language_model"})
"""Parts of a key before the decoder's own names: PEFT's, the causal model's, Gemma 3's (old and new transformers)."""
_LORA_UNNAMED = re.compile(r"\.lora_([AB])\.weight$")
_LANGUAGE_ROOT = re.compile(r"(lm|medgemma_full)\.(.+)|(lm_head\..+)")


@dataclass(frozen=True)
class Layout:
    """How to read one kind of file.

    Attributes:
        name: as in ``import_weights.layout``.
        known_by: matches a key that only this kind has.
        place: our name of a key (without ``base_layer``), or None.
        unused: matches keys that are known and that the model does not need.
        holds: prefixes of our names that such a file must have, all of them.
        has_language_model: whether adapters, or the whole language model, are in it too.
    """

    name: str
    known_by: re.Pattern[str]
    place: Callable[[str], str | None]
    unused: re.Pattern[str]
    holds: tuple[str, ...]
    has_language_model: bool


def _opera_place(key: str) -> str | None:
    return encoder_place(key.removeprefix("encoder."))


def _stetholm_place(key: str) -> str | None:
    if key.startswith("audio_encoder."):
        return encoder_place(key.removeprefix("audio_encoder."))
    if key.startswith("prefix_project."):
        return PROJECTOR + key.removeprefix("prefix_project.")
    return language_place(key)


def language_place(key: str) -> str | None:
    """Our name of a weight of the language model, whatever is wrapped around it; None if it is not one of it."""
    root = _LANGUAGE_ROOT.fullmatch(key)
    if root is None:
        return None
    parts = (root[2] or root[3]).split(".")
    while parts and parts[0] in _AROUND_THE_DECODER:
        parts.pop(0)
    name = _LORA_UNNAMED.sub(r".lora_\1.default.weight", ".".join(part for part in parts if part != "base_layer"))
    return name if name.startswith(HEAD) else LANGUAGE + name


OPERA = Layout(
    name="opera",
    known_by=re.compile(r"(encoder\.)?(cnn1|efficientnet)\."),
    place=_opera_place,
    # The heads of the contrastive training, and the classifier of ImageNet.
    unused=re.compile(r"(g|middle|layer_norm|linear)\.(weight|bias)|(encoder\.)?efficientnet\._fc\.(weight|bias)"),
    holds=(TOWER,),
    has_language_model=False,
)
STETHOLM = Layout(
    name="stetholm",
    known_by=re.compile(r"(audio_encoder|prefix_project|medgemma_full)\."),
    place=_stetholm_place,
    # MedGemma's eyes (PEFT put LoRA there too), and what a model computes from its configuration.
    unused=re.compile(
        r"medgemma_full\.(\w+\.)*(vision_tower|multi_modal_projector)\..+"
        r"|(lm|medgemma_full)\..+\.(\w*inv_freq|embed_scale)"
        r"|audio_encoder\.efficientnet\._fc\.(weight|bias)"
    ),
    holds=(TOWER, PROJECTOR),
    has_language_model=True,
)
LAYOUTS = {layout.name: layout for layout in (STETHOLM, OPERA)}
"""By name, in the order in which they are tried."""


def layout_of(keys: Iterable[str], name: str = "auto") -> Layout:
    """The layout called ``name``, or with ``auto`` the one whose keys these are.

    Raises:
        UserError: they are of no layout we know.
    """
    if name != "auto":
        return LAYOUTS[name]
    names = list(keys)
    for layout in LAYOUTS.values():
        if any(layout.known_by.match(key) for key in names):
            return layout
    raise UserError(
        f"import_weights.weights: no layout fits its keys ({', '.join(names[:3])} …): expected those of an OPERA-CE "
        "checkpoint (encoder.efficientnet.…) or of a StethoLM file (audio_encoder.…, prefix_project.…)"
    )
