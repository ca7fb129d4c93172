"""Zero-shot classification as in the paper's Figure 3: a report is compared with the description of each class.

The text similarity is the cosine of sentence embeddings. The score of a class is its similarity less the mean of the
others'; of two classes that is the similarity difference, from which the AUROC is. The predicted class is the most
similar one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stetholm.errors import UserError
from stetholm.evaluation.metrics import MINILM, minilm_folder
from stetholm.model.language import quiet


class TextSimilarity:
    """Cosine similarity of texts by a model of sentence-transformers, loaded once.

    Args:
        model: ``minilm``, an id or a folder.
        device: where it runs.

    Raises:
        UserError: it cannot be loaded.
    """

    def __init__(self, model: str = MINILM, device: str = "cpu") -> None:
        from sentence_transformers import SentenceTransformer  # late: a second that other jobs need not wait

        source = str(minilm_folder()) if model == MINILM else model
        self.name = "all-MiniLM-L6-v2" if model == MINILM else model
        try:
            with quiet():
                self._model: Any = SentenceTransformer(source, device=device, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"probe.text_model: {model!r} cannot be loaded ({reason}); use {MINILM!r}") from error

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> NDArray[np.float64]:
        """(texts, others) in [-1, 1]; a text that comes back is embedded once."""
        return np.array(self._embed(texts) @ self._embed(others).T, np.float64)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        unique = sorted(set(texts))
        rows: NDArray[np.float32] = self._model.encode(unique, normalize_embeddings=True, show_progress_bar=False)
        place = {text: number for number, text in enumerate(unique)}
        return rows[[place[text] for text in texts]]


def scores(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, classes): each similarity less the mean of the others'."""
    others = similarity.shape[1] - 1
    return similarity - (similarity.sum(axis=1, keepdims=True) - similarity) / others
