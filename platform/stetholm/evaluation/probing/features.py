"""Features of every recording, once: a Ray Data actor pool of encoders, which a restart goes on with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from stetholm.corpus.datasource import data_cores, quiet
from stetholm.evaluation.generation import Features as LogMels
from stetholm.evaluation.parts import Vector, VectorStore, column, vectors
from stetholm.evaluation.probing.encoders import Encoder, load_features
from stetholm.evaluation.probing.labels import Known
from stetholm.progress import Progress
from stetholm.roles import gpu_nodes
from stetholm.storage import Storage

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """What the members of the pool load."""

    encoders: tuple[Encoder, ...]
    storage: Storage
    seed: int
    use_gpu: bool = False


class Embedder:
    """A member of the pool: loads the encoders once; log-mels in, features of all of them out."""

    def __init__(self, plan: Plan, log_mels: dict[str, ray.ObjectRef], seconds: dict[str, float]) -> None:
        if not plan.use_gpu:
            torch.set_num_threads(1)
        device = "cuda" if plan.use_gpu else "cpu"
        self._functions = [load_features(one, plan.storage, plan.seed, device) for one in plan.encoders]
        self._log_mels, self._seconds = log_mels, seconds

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``recording`` in; ``recording`` and ``vector`` (all encoders' features, one after the other) out."""
        names = batch["recording"].to_pylist()
        sounds = np.stack(ray.get([self._log_mels[name] for name in names]))
        lengths = [self._seconds[name] for name in names]
        made = np.concatenate([function(sounds, lengths) for function in self._functions], axis=1)
        return pa.table({"recording": names, "vector": column(list(made))})


def places(use_gpu: bool) -> int:
    """How many actors of one GPU, or of one core, fit the cluster."""
    return max(1, int(ray.cluster_resources().get("GPU", 1))) if use_gpu else data_cores()


def widths(plan: Plan) -> list[int]:
    """Size of each encoder's features. It loads them, so that a wrong name or weight shows before the long part."""
    silence = np.zeros((1, 64, 218), np.float32)
    return [load_features(one, plan.storage, plan.seed)(silence, [7.0]).shape[1] for one in plan.encoders]


def embed(
    recordings: Sequence[Known],
    log_mels: LogMels,
    plan: Plan,
    sizes: Sequence[int],
    store: VectorStore,
    batch_size: int,
    progress: Progress,
) -> list[Matrix]:
    """Features (recordings, width) of each encoder of ``plan``, computed where the store does not hold them yet.

    Args:
        recordings: whose.
        log_mels: of each.
        plan: the encoders.
        sizes: what :func:`widths` gave of ``plan``.
        store: of these encoders and this corpus alone.
        batch_size: recordings that an encoder takes together.
        progress: told how many recordings are done.
    """
    found = store.load()
    todo = [one for one in recordings if one.recording_id not in found]
    for table in _embedded(todo, log_mels, plan, batch_size):
        made = dict(zip(table["recording"].to_pylist(), vectors(table["vector"]), strict=True))
        store.add(made)
        found.update(made)
        progress.update(len(found))
    store.flush()
    return _split(recordings, found, sizes)


def _split(recordings: Sequence[Known], found: Mapping[str, Vector], sizes: Sequence[int]) -> list[Matrix]:
    if not recordings:
        return [np.zeros((0, size), np.float32) for size in sizes]
    whole = np.stack([found[one.recording_id] for one in recordings])
    return np.split(whole, np.cumsum(sizes)[:-1], axis=1)


def _embedded(todo: Sequence[Known], log_mels: LogMels, plan: Plan, batch_size: int) -> Iterable[pa.Table]:
    """Tables of features as the actors make them."""
    if not todo:
        return
    actors = min(places(plan.use_gpu), math.ceil(len(todo) / batch_size))
    rows = [{"recording": one.recording_id} for one in todo]
    wanted = {one.recording_id: log_mels[one.recording_id] for one in todo}
    dataset = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / batch_size)).map_batches(
        Embedder,
        fn_constructor_args=(plan, wanted, {one.recording_id: one.seconds for one in todo}),
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        num_cpus=0 if plan.use_gpu else 1,
        num_gpus=1 if plan.use_gpu else 0,
        label_selector=gpu_nodes(plan.use_gpu),
    )
    yield from quiet(dataset).iter_batches(batch_size=None, batch_format="pyarrow")
