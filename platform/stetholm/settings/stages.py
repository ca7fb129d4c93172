"""The three training stages."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stetholm.errors import UserError
from stetholm.settings.base import Section, Task

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
"""Where curves can go; see :mod:`stetholm.training.trackers`."""

DpoLoss = Literal[
    "sigmoid_norm",
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]
"""TRL's losses of preference pairs; see docs/training.md for what each asks for."""

Augmentation = Literal["none", "label-keeping", "published"]
"""What training does to waveforms; see :mod:`stetholm.audio.augment`."""


class TrainSettings(Section):
    """Shared by the three stages; align.*, sft.* and dpo.* take the same keys and win for theirs."""

    workers: int = Field(2, ge=1)
    use_gpu: bool = False
    cpus_per_worker: float | None = Field(None, gt=0)
    """Default: what Ray has, less one CPU for reading, shared by the workers; at most 1 each without a GPU."""
    label_selector: dict[str, str] | None = None
    """Labels of the nodes on which workers may run, in Ray's form, e.g. {pool: a100}; {}: any. Default:
    {stetholm.role: trainer} where nodes carry that label, as those of cluster.yaml do."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO: what the workers share out. 0 nothing; 1 optimizer; 2 and gradients; 3 and weights."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What waits in the CPU's memory: the optimizer's state (zero_stage 1 and up), all weights too (zero_stage 3)."""
    gradient_checkpointing: bool = False
    """Keep one state a layer and compute the others again in the backward pass: less memory, a third more time."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    max_steps: int | None = Field(None, ge=1)
    epochs: float = Field(1.0, gt=0)
    learning_rate: float = Field(5e-5, gt=0)
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    """Samples a worker and step."""
    tokens_per_batch: int | None = Field(None, ge=64)
    """Padded tokens a worker and step; wins over batch_size."""
    augmentation: Augmentation = "label-keeping"
    """Of waveforms. Without it, recordings of up to 7 s are not even decoded: ingest has kept their log-mel."""
    out_of_domain: bool = False
    """Train on rows of the out-of-domain sets too, which otherwise only measure what training has not seen."""
    max_tokens: int = Field(256, ge=16)
    """Longest prompt plus response, in tokens; a longer sample is an error that names it."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between two checkpoints, which are uploaded while training goes on, one at a time."""
    keep_checkpoints: int = Field(2, ge=1)
    """The last ones that are kept; besides them the best."""
    max_failures: int = Field(3, ge=0)
    """How often workers that die are started again. Leaving on SIGTERM or for a node that goes is no failure."""
    grace_seconds: float = Field(60.0, gt=0)
    """On SIGTERM, to the job or to a worker: how long for a checkpoint of the current step before it ends anyway."""
    log_every: int = Field(5, ge=1)
    """Steps between two log lines; there is one at the first and last step and at each checkpoint too."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Where the curves go besides checkpoints; wandb and mlflow need the extra `trackers`."""
    divergence: float | None = Field(2.0, gt=0)
    """Stop when the smoothed loss is this much (nats) above its best for divergence_steps; None: never."""
    divergence_steps: int = Field(100, ge=1)
    evaluate_every: int | None = Field(None, ge=1)
    """Evaluate every n-th checkpoint beside training, and choose the best by it. Off by default: the task takes
    a core and a whole model's memory, which on a small machine training would miss."""
    evaluate_samples: int = Field(256, ge=1)
    """Of the corpus's val split; the same ones each time."""
    evaluate_cpus: float = Field(1.0, gt=0)
    """Of the evaluating task, besides training's own."""
    evaluate_gpu: bool = False
    """The task takes a GPU of its own, which the cluster must have besides those of training."""

    rows_per_sample: ClassVar[int] = 1
    """Rows of a batch that a sample takes."""

    def require_consistent(self, stage: str) -> None:
        """Raise a UserError if settings of the (resolved) ``stage`` contradict each other."""
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < least:
            raise UserError(
                f"{stage}: train.offload={self.offload} needs train.zero_stage of {least} or more, not "
                f"{self.zero_stage}: raise it, or set train.offload=none"
            )
        longest = self.rows_per_sample * self.max_tokens
        if self.tokens_per_batch is not None and self.tokens_per_batch < longest:
            raise UserError(
                f"{stage}: train.tokens_per_batch={self.tokens_per_batch} does not hold one sample of "
                f"train.max_tokens={self.max_tokens} ({longest} tokens with its rows): raise it, or lower max_tokens"
            )


class AlignSettings(TrainSettings):
    """Audio-text alignment: contrastive and captioning loss; the language model is frozen."""

    learning_rate: float = Field(2e-4, gt=0)
    encoder_learning_rate: float | None = Field(2e-3, gt=0)
    """Of the audio encoder, which starts from random weights unless some are imported; None: as the projector."""
    epochs: float = Field(4.0, gt=0)
    batch_size: int = Field(8, ge=1)
    contrastive_weight: float = Field(1.0, ge=0)
    scale_weight: float = Field(0.1, ge=0)
    """Of the term that keeps prefix tokens as long as embedded text tokens are."""
    caption_weight: float = Field(0.0, ge=0)
    temperature: float = Field(0.1, gt=0)
    tasks: list[Task] = Field(["Identification", "Report"])
    """Whose responses describe the sound itself; where a corpus has none of them, all are used."""


class SftSettings(TrainSettings):
    """Supervised fine-tuning: LoRA, projector and encoder learn the responses."""

    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(4, ge=1)
    encoder_learning_rate: float | None = Field(1e-4, gt=0)
    """Of the audio encoder, which alignment has trained already; None: as the rest (published)."""


class DpoSettings(TrainSettings):
    """Multimodal DPO: LoRA and projector learn preferences; the encoder is frozen."""

    learning_rate: float = Field(3e-6, gt=0)
    batch_size: int = Field(2, ge=1)
    augmentation: Augmentation = "none"
    beta: float = Field(0.5, gt=0)
    lambda_conditional: float = Field(0.5, ge=0)
    lambda_anchor: float = Field(1.5, ge=0)
    anchor_margin: float = 0.5
    chosen: Literal["candidate", "reference"] = "candidate"
    """The best candidate, or the reference answer as the published code takes it."""
    loss_type: tuple[DpoLoss, ...] = Field(("sigmoid_norm",), min_length=1)
    """TRL's losses that stand for L_dpo; several are added. sigmoid_norm is the published, length-averaged one."""
    loss_weights: tuple[float, ...] | None = None
    """Of the losses, in their order; default: 1 each."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Used by exo_pair (which needs it above 0), robust, aot and aot_unpaired."""
    reference: Literal["adapters-off", "ahead"] = "adapters-off"
    """Score the reference in every step, or once before training, in a Ray Data job whose result is kept."""

    rows_per_sample: ClassVar[int] = 3

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _losses_fit(self) -> DpoSettings:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"{len(self.loss_weights)} loss_weights for {len(self.loss_type)} loss_type: give one each"
            )
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("loss_type exo_pair needs a label_smoothing above 0, for example 0.001")
        return self
