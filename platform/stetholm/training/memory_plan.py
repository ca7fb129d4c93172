"""What a training step needs of a GPU's memory, before one is rented.

    python -m stetholm.training.memory_plan --config platform/stetholm/presets/medgemma-8-gpus.yaml

prints what takes how much with the settings as they are, and the sum for every ZeRO stage and offload. The rules of
sharing are ZeRO's (arXiv 1910.02054); activations are counted by the tensors that autograd keeps of a decoder layer
whose own weights are frozen, which is why they are fewer than in arXiv 2205.05198. Not counted: what lives for a
moment inside an operation, CUDA's own context and the allocator's gaps; leave a fifth and 1 GiB for them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from stetholm.audio.features import N_FRAMES, N_MELS
from stetholm.errors import UserError
from stetholm.settings import AlignSettings, Settings, StageName, TrainSettings, load_settings
from stetholm.training.response_head import NUMBERS_AT_A_TIME
from stetholm.training.zero import BUCKET

GIB = 2**30
PREFIX_TOKENS = 4
Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class Decoder:
    """The sizes of a language model that decide about memory.

    Attributes:
        width: of a hidden state.
        layers: how many.
        inner: width of the gated feed-forward part.
        queries: width of all query heads together.
        keys: width of all key heads together.
        heads: query heads.
        vocabulary: rows of the embedding.
        tied: whether the head is the embedding.
        norms: RMS norms a layer.
        head_norms: whether queries and keys are normalised.
    """

    width: int
    layers: int
    inner: int
    queries: int
    keys: int
    heads: int
    vocabulary: int
    tied: bool
    norms: int = 2
    head_norms: bool = False

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """Of a text configuration of transformers."""
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        gemma = str(config.model_type).startswith("gemma3")
        return cls(
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            inner=config.intermediate_size,
            queries=heads * size,
            keys=(getattr(config, "num_key_value_heads", None) or heads) * size,
            heads=heads,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            norms=4 if gemma else 2,
            head_norms=gemma or config.model_type == "qwen3",
        )

    @property
    def parameters(self) -> int:
        """Weights, embedding and head included."""
        attention = 2 * self.width * (self.queries + self.keys)
        layer = attention + 3 * self.width * self.inner + self.norms * self.width
        return self.layers * layer + self.vocabulary * self.width * (1 if self.tied else 2)

    def lora(self, rank: int) -> int:
        """Weights of an adapter on q, k, v and o."""
        return self.layers * rank * 2 * (2 * self.width + self.queries + self.keys)

    def kept(self, bytes_a_number: int, *, rank: int, length: int, dropout: bool, fused: bool) -> float:
        """Bytes a token and layer that autograd keeps for the backward pass.

        Args:
            bytes_a_number: of the frozen weights' format.
            rank: of the adapter on q, k, v and o; 0 without one.
            length: of a sequence: without fused attention, each token keeps its row of probabilities.
            dropout: whether the adapter drops out.
            fused: whether attention is fused (a GPU); a CPU runs it in plain steps, counted as transformers writes them
                (:mod:`stetholm.model.on_cpu` keeps less).
        """
        b, h, q = bytes_a_number, self.width, self.queries
        # In norms: the fp32 copy of the input (in fp32 the residual itself).
        norms = 4 * (self.norms * h + (q + self.keys if self.head_norms else 0))
        # Frozen projections keep nothing; an adapter keeps its input, after dropout each of q, k and v one of its own,
        # with its mask: of bytes on a GPU, as wide as the numbers on a CPU.
        inputs = (3 * h + q) * (b + (1 if fused else b)) if dropout else (h + q) * b
        adapter = (inputs + 4 * b * rank) if rank else 0
        # q, k and v, the latter two repeated for each query head; then either the output or the probabilities,
        # in fp32 out of the softmax and once more in the weights' format.
        attention = 3 * b * q
        attention += b * q + 4 * self.heads if fused else self.heads * length * (4 + (b if b != 4 else 0))
        feed_forward = 3 * b * self.inner  # gate, its activation, and what it is multiplied by
        return norms + adapter + attention + feed_forward


MEDGEMMA_4B = Decoder(2560, 34, 10240, 2048, 1024, 8, 262_208, True, norms=4, head_norms=True)
"""google/medgemma-4b-it, whose files ask for a licence to be accepted: Gemma 3's published sizes."""
SMOLLM2_135M = Decoder(576, 30, 1536, 576, 192, 9, 49_152, True)
KNOWN = {"google/medgemma-4b-it": MEDGEMMA_4B, "smollm2-135m": SMOLLM2_135M}


@dataclass(frozen=True)
class Encoder:
    """Weights of an audio encoder, the width of what it pools, and bytes kept a recording while it trains."""

    weights: int
    width: int
    kept: float

    @classmethod
    @cache
    def count(cls, name: str) -> Encoder:
        """Of the published size of ``name``, counted in a forward pass of its own."""
        from stetholm.model import StethoLMConfig
        from stetholm.model.encoders import build_encoder

        encoder = build_encoder(name, StethoLMConfig(audio_encoder=name).audio_config).train()
        one, three = (
            kept_bytes(partial(encoder, torch.rand(count, N_MELS, N_FRAMES)), encoder.parameters()) for count in (1, 3)
        )
        return cls(sum(each.numel() for each in encoder.parameters()), encoder.width, (three - one) / 2)


def kept_bytes(forward: Callable[[], torch.Tensor], known: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that autograd keeps of ``forward`` for the backward pass, each storage once, without those of ``known``."""
    apart = {each.untyped_storage().data_ptr() for each in known}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # held until all is counted: no address is used twice
    return sum(kept.values()) if result is not None else 0


@dataclass(frozen=True)
class Load:
    """What a step works on, a worker.

    Attributes:
        sequences: rows of the batch (for dpo three a pair).
        length: tokens of each, padded.
        scored: response tokens of each.
        recordings: distinct spectrograms.
    """

    sequences: int
    length: int
    scored: int
    recordings: int


@dataclass(frozen=True)
class Need:
    """Bytes on one GPU, by what takes them; ``host`` is on the CPU beside it."""

    frozen_weights: float
    trained_weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    encoder: float
    logits: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """On the GPU."""
        return sum(getattr(self, one.name) for one in fields(self)) - self.host


@dataclass(frozen=True)
class Plan:
    """A stage's memory by its settings.

    Attributes:
        decoder: of the language model.
        encoder: the audio encoder.
        stage: align, sft or dpo.
        train: its settings, resolved.
        load: of a step.
        rank: of the adapter.
        number: bytes of a frozen weight.
        dropout: of the adapter.
    """

    decoder: Decoder
    encoder: Encoder
    stage: StageName
    train: TrainSettings
    load: Load
    rank: int
    number: int = 2
    dropout: float = 0.1

    def need(self) -> Need:
        """Bytes on each GPU."""
        zero, offload, world = self.train.zero_stage, self.train.offload, self.train.workers
        trained, frozen = self.trained(), self.frozen()
        parts = 1 / world
        own = parts if zero else 1.0
        # ZeRO steps on an fp32 copy of what trains, beside the parameters themselves.
        optimizer = trained * (8 + (4 if zero else 0)) * own
        gradients = trained * 4 * (parts if zero >= 2 else 1.0)
        whole = parts if zero == 3 else 1.0
        layer = (self.decoder.parameters - self._embedding()) * self.number / self.decoder.layers
        # Under ZeRO-3 a layer at a time is whole, and once the embedding.
        buffers = 8.0 * min(BUCKET, trained) + (2 * layer + self._embedding() * self.number if zero == 3 else 0.0)
        need = Need(
            frozen * whole, trained * 4 * whole, gradients, optimizer, buffers, self._activations(), self._encoder(),
            self._logits(),
        )  # fmt: skip
        if offload == "none":
            return need
        host = optimizer + gradients * (zero >= 2)
        need = replace(need, optimizer=0.0, gradients=min(gradients, 8.0 * BUCKET) if zero >= 2 else gradients)
        if offload == "all":
            host += need.frozen_weights + need.trained_weights
            need = replace(need, frozen_weights=0.0, trained_weights=0.0)
        return replace(need, host=host)

    def trained(self) -> int:
        """Numbers that train."""
        adapter = self.decoder.lora(self.rank) if self.stage != "align" else 0
        return self._projector() + adapter + (self.encoder.weights if self.stage != "dpo" else 0)

    def frozen(self) -> float:
        """Bytes of what does not train: the language model; for dpo encoder, SFT's adapter and old projector too."""
        language = float(self.decoder.parameters * self.number)
        if self.stage != "dpo":
            return language
        return language + 4 * (self.encoder.weights + self.decoder.lora(self.rank) + self._projector())

    def _projector(self) -> int:
        d = self.decoder.width
        sizes = (self.encoder.width, d * PREFIX_TOKENS // 2, d * PREFIX_TOKENS, d * PREFIX_TOKENS)
        return sum(before * after + after for before, after in pairwise(sizes))

    def _embedding(self) -> int:
        return self.decoder.vocabulary * self.decoder.width

    def _through_language(self) -> bool:
        """Whether a gradient goes through the language model."""
        return not isinstance(self.train, AlignSettings) or self.train.caption_weight > 0

    def _activations(self) -> float:
        if not self._through_language():
            return 0.0
        tokens = self.load.sequences * self.load.length
        adapters = self.rank if self.stage != "align" else 0
        dropout = self.dropout > 0 and self.stage != "dpo"  # TRL switches it off for preferences
        kept = self.decoder.kept(
            self.number, rank=adapters, length=self.load.length, dropout=dropout, fused=self.train.use_gpu
        )
        if not self.train.gradient_checkpointing:
            return tokens * kept * self.decoder.layers
        return tokens * (self.number * self.decoder.width * self.decoder.layers + kept)

    def _encoder(self) -> float:
        return self.encoder.kept * self.load.recordings if self.stage != "dpo" else 0.0

    def _logits(self) -> float:
        if not self._through_language():
            return 0.0
        scored = self.load.sequences * self.load.scored
        numbers = NUMBERS_AT_A_TIME["cuda" if self.train.use_gpu else "cpu"]
        rows = min(scored, max(1, numbers // self.decoder.vocabulary))
        # Three fp32 matrices at a time; of all tokens only a slope as wide as a state is kept.
        return 12.0 * rows * self.decoder.vocabulary + float(scored * self.decoder.width * self.number)


def load_of(train: TrainSettings, stage: StageName, length: int, scored: int) -> Load:
    """A worker's step: samples of ``length`` tokens, of which ``scored`` are the response's."""
    samples = train.tokens_per_batch // (train.rows_per_sample * length) if train.tokens_per_batch else train.batch_size
    samples = max(samples, 1)
    return Load(samples * train.rows_per_sample, length, scored, samples * (2 if stage == "dpo" else 1))


def plan_for(settings: Settings, stage: StageName, length: int = 132, scored: int = 64) -> Plan:
    """The plan of a stage of ``settings``.

    Args:
        settings: the tree.
        stage: which.
        length: tokens of a sample; default: the published 64 of instruction and response each, and a recording.
        scored: of these, the response's.

    Raises:
        UserError: the language model's sizes are not known here.
    """
    train, model = settings.stage(stage), settings.model
    number = 4 if train.precision == "fp32" else 2
    decoder, load = decoder_of(model.language_model), load_of(train, stage, length, scored)
    encoder = Encoder.count(model.audio_encoder)
    return Plan(decoder, encoder, stage, train, load, model.lora.r, number, model.lora.dropout)


def decoder_of(name: str) -> Decoder:
    """Sizes of a language model by its id or folder.

    Raises:
        UserError: its configuration cannot be read.
    """
    if name in KNOWN:
        return KNOWN[name]
    from transformers import AutoConfig

    try:
        return Decoder.of(AutoConfig.from_pretrained(name).get_text_config())
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.language_model={name}: its sizes cannot be read ({reason})") from error


def table(plan: Plan) -> str:
    """What takes how much, and the sums under other settings, as text."""
    need, train = plan.need(), plan.train
    lines = [
        f"{plan.stage}, {train.workers} workers, ZeRO {train.zero_stage}, offload {train.offload}, "
        f"checkpointing {'on' if train.gradient_checkpointing else 'off'}; "
        f"{plan.load.sequences} sequences of {plan.load.length} tokens a worker",
        *(f"  {one.name.replace('_', ' '):16} {getattr(need, one.name) / GIB:8.2f} GiB" for one in fields(need)),
        f"  {'each GPU':16} {need.total / GIB:8.2f} GiB",
        "",
        "GiB on each GPU (+ on its CPU)   checkpointing off   on",
    ]
    for zero, offload in _choices():
        cells = []
        for checkpointing in (False, True):
            update = {"zero_stage": zero, "offload": offload, "gradient_checkpointing": checkpointing}
            other = replace(plan, train=train.model_copy(update=update)).need()
            cells.append(f"{other.total / GIB:7.2f} (+{other.host / GIB:5.2f})")
        lines.append(f"  ZeRO {zero}, offload {offload:10}        {cells[0]}   {cells[1]}")
    return "\n".join(lines)


def _choices() -> list[tuple[int, Offload]]:
    least = {"none": 0, "optimizer": 1, "all": 3}
    return [(zero, offload) for zero in range(4) for offload in get_args(Offload) if zero >= least[offload]]


def main() -> None:
    """Print the tables of the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings file (default: cluster.yaml here, if it exists)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; repeatable")
    parser.add_argument("--stage", choices=get_args(StageName), help="default: sft and dpo")
    parser.add_argument("--length", type=int, default=132, help="tokens of a sample")
    parser.add_argument("--scored", type=int, default=64, help="of these, the response's")
    chosen = parser.parse_args()
    try:
        settings = load_settings(chosen.config, chosen.set)
        stages: list[StageName] = [chosen.stage] if chosen.stage else ["sft", "dpo"]
        print("\n\n".join(table(plan_for(settings, stage, chosen.length, chosen.scored)) for stage in stages))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
