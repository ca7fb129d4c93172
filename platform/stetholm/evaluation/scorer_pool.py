"""BERTScore of many pairs: a Ray Data actor pool. Of a few, or without Ray, the scorer of this process does it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from stetholm.corpus.datasource import quiet
from stetholm.evaluation.metrics import BertScorer
from stetholm.evaluation.probing.features import places
from stetholm.progress import Progress
from stetholm.roles import gpu_nodes

POOLED_FROM = 4096
"""Different pairs from which on it is worth loading the backbone in actors."""
PAIRS_PER_CALL = 512

Pair = tuple[str, str]


class ScoreMember:
    """A member of the pool: loads the backbone once, scores pairs."""

    def __init__(self, backbone: str, use_gpu: bool) -> None:
        if not use_gpu:
            torch.set_num_threads(1)
        self._scorer = BertScorer(backbone, device="cuda" if use_gpu else "cpu")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``place``, ``prediction`` and ``reference`` in; ``place`` and ``f1`` out."""
        scores = self._scorer(batch["prediction"].to_pylist(), batch["reference"].to_pylist())
        return pa.table({"place": batch["place"], "f1": pa.array(scores, pa.float64())})


class PooledBertScorer:
    """See :class:`stetholm.evaluation.metrics.Scorer`.

    Args:
        backbone: as of :class:`BertScorer`; it is loaded here too, so that a wrong name shows at once.
        use_gpu: one GPU a member of the pool.
        pooled_from: different pairs from which on the pool is used.
        pairs_per_call: of a member.
    """

    def __init__(
        self, backbone: str, use_gpu: bool = False, pooled_from: int = POOLED_FROM, pairs_per_call: int = PAIRS_PER_CALL
    ) -> None:
        self._here = BertScorer(backbone)
        self.name = self._here.name
        self._backbone, self._use_gpu = backbone, use_gpu
        self._pooled_from, self._per_call = pooled_from, pairs_per_call

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """BERTScore F1 of every pair.

        Raises:
            ValueError: the two lists differ in length.
        """
        pairs = list(zip(predictions, references, strict=True))
        # By reference, so that one which is held against several texts is embedded once a call.
        unique = sorted(set(pairs), key=lambda pair: (pair[1], pair[0]))
        if len(unique) < self._pooled_from or not ray.is_initialized():
            return self._here(predictions, references)
        found: dict[Pair, float] = {}
        with Progress("BERTScore", len(unique), "pairs") as progress:
            for table in self._scored(unique):
                columns = (table[name].to_pylist() for name in ("place", "f1"))
                found.update({unique[place]: f1 for place, f1 in zip(*columns, strict=True)})
                progress.update(len(found))
        return [found[pair] for pair in pairs]

    def _scored(self, unique: Sequence[Pair]) -> Iterable[pa.Table]:
        rows = [{"place": place, "prediction": p, "reference": r} for place, (p, r) in enumerate(unique)]
        calls = math.ceil(len(rows) / self._per_call)
        dataset = ray.data.from_items(rows, override_num_blocks=calls).map_batches(
            ScoreMember,
            fn_constructor_args=(self._backbone, self._use_gpu),
            batch_size=self._per_call,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(places(self._use_gpu), calls)),
            num_cpus=0 if self._use_gpu else 1,
            num_gpus=1 if self._use_gpu else 0,
            label_selector=gpu_nodes(self._use_gpu),
        )
        yield from quiet(dataset).iter_batches(batch_size=None, batch_format="pyarrow")
