"""The typed settings tree: one class a component, one field a setting.

Every value has a default that runs on a laptop with nothing configured (the embedded defaults of
docs/architecture.md). The published setting is the same tree with other values.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from stetholm.errors import UserError

EMBEDDED = "embedded"
"""The value of ``storage.uri`` that asks for the embedded S3 server."""

Task = Literal[
    "Identification",
    "Classification",
    "Report",
    "Reasoning",
    "Differential Diagnosis",
    "Comparison",
    "Location",
]
"""StethoBench's seven tasks."""


StageName = Literal["align", "sft", "dpo"]

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


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class StorageSettings(Section):
    """Where corpora and checkpoints live: any S3 endpoint, or the embedded server."""

    uri: str = Field(EMBEDDED, pattern=r"^(embedded|s3://[a-z0-9][a-z0-9.-]+(/.*)?)$")
    endpoint_url: str | None = None
    access_key: str | None = None
    secret_key: SecretStr | None = None
    region: str = "us-east-1"


class RunSettings(Section):
    """Name and seed of a run. The same name again continues it."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(0, ge=0, lt=2**32)


class SyntheticSettings(Section):
    """Size of the embedded corpus (corpus.source = synthetic)."""

    patients: int = Field(320, ge=8)
    seconds: float = Field(7.0, gt=1.0, le=60.0)


class CorpusSettings(Section):
    """What ingest reads and where its shards lie."""

    uri: str | None = Field(None, pattern=r"^s3://.+")
    """Shards. Default: <storage.uri>/runs/<run.name>/corpus."""
    source: str = "synthetic"
    jsonl: str | None = None
    audio: str | None = None
    max_reject_fraction: float = Field(0.01, ge=0.0, le=1.0)
    shard_bytes: int = Field(128 * 2**20, ge=2**16)
    row_group_rows: int = Field(64, ge=1)
    reader_bytes: int = Field(768 * 2**20, ge=2**20)
    """Memory of the object store that each rank's stream may take; two tasks of 64 MiB at least."""
    synthetic: SyntheticSettings = SyntheticSettings()


class AudioSettings(Section):
    """Bounds on every sound that is decoded, from a corpus or over HTTP."""

    max_bytes: int = Field(64 * 2**20, gt=0)
    max_seconds: float = Field(600.0, gt=0)
    min_rate: int = Field(1_000, gt=0)
    max_rate: int = Field(192_000, gt=0)
    max_channels: int = Field(2, ge=1)


class LoraSettings(Section):
    """LoRA on the attention projections of the language model (published: r 8, alpha 32, 0.1)."""

    r: int = Field(8, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the linear layers to adapt. Default: q_proj, k_proj, v_proj, o_proj, qkv_proj, whichever there are."""


class ModelSettings(Section):
    """Which parts make the model, and which checkpoint it starts from."""

    language_model: str = "smollm2-135m"
    audio_encoder: str = Field("cola", pattern=r"^[a-z0-9_-]+$")
    """cola, ast, clap, or another that a file in stetholm/model/encoders registers."""
    audio_encoder_weights: str | None = None
    """Pretrained weights that a new model's encoder begins with: hub id, folder or s3:// URI. Default: random."""
    init_from: str | None = None
    prompt_style: Literal["plain", "chat"] = "plain"
    projector_dropout: float = Field(0.1, ge=0.0, lt=1.0)
    lora: LoraSettings = LoraSettings()


class TrainSettings(Section):
    """Shared by the three stages; align.*, sft.* and dpo.* take the same keys and win for theirs."""

    workers: int = Field(2, ge=1)
    use_gpu: bool = False
    cpus_per_worker: float | None = Field(None, gt=0)
    """Default: what Ray has, less one CPU for reading, shared by the workers; at most 1 each without a GPU."""
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

    learning_rate: float = Field(1e-3, gt=0)
    epochs: float = Field(4.0, gt=0)
    batch_size: int = Field(8, ge=1)
    contrastive_weight: float = Field(1.0, ge=0)
    scale_weight: float = Field(0.1, ge=0)
    """Of the term that keeps prefix tokens as long as embedded text tokens are."""
    caption_weight: float = Field(0.0, ge=0)
    temperature: float = Field(0.1, gt=0)
    tasks: list[Task] = ["Identification", "Report"]
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


class PreferSettings(Section):
    """Preference pairs: candidates from the SFT model, scored against the reference answer."""

    pairs: int = Field(16, ge=1)
    val_pairs: int = Field(0, ge=0)
    """Besides, of the corpus's val split: what dpo.evaluate_every measures."""
    candidates: int = Field(5, ge=2)
    temperatures: list[float] = [0.7, 0.85, 1.0, 1.15, 1.3]
    max_new_tokens: int = Field(64, ge=1)
    scorer: str = "minilm"


class EvaluateSettings(Section):
    """Generation over a split and the table made of it."""

    split: str = "test"
    max_examples: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    controls: bool = True
    scorer: str = "minilm"
    judge: str | None = None
    gate: dict[str, float] | None = None


class ImportSettings(Section):
    """Published weights that become a checkpoint of ours."""

    weights: str | None = None
    """File or s3:// URI of an OPERA-CE checkpoint or of published StethoLM weights."""
    layout: Literal["auto", "opera", "stetholm"] = "auto"
    allow_partial: bool = False
    """Take what fits, though something is unknown, missing or of another shape."""


class ExportSettings(Section):
    """A checkpoint as one folder that others can load."""

    kind: Literal["merged", "adapter"] = "merged"
    """merged: the whole model; adapter: encoder, projector and LoRA, to be loaded over the language model."""
    dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    to: str | None = None
    """A folder or s3:// URI that is not there yet. Default: <storage.uri>/runs/<run.name>/export/<kind>."""


class ExplainSettings(Section):
    """What the answers of a checkpoint rest on: attention, and occlusion over time."""

    audio: list[str] = []
    """Recordings of one question: paths or s3:// URIs. Default: examples of the corpus."""
    question: str | None = None
    split: str = "test"
    examples: int = Field(4, ge=1)
    answer: Literal["own", "reference"] = "own"
    """Which answer is explained: the model's own or, of the corpus's examples, the reference."""
    window: float = Field(1.0, ge=0.064, le=7.0)
    """Seconds that are occluded at a time."""
    hop: float = Field(0.5, gt=0.0, le=7.0)
    """Seconds from one window to the next; not more than the window."""
    max_new_tokens: int = Field(48, ge=1)
    batch_size: int = Field(16, ge=1)
    precision: Literal["bf16", "fp32"] = "fp32"
    """Rounding in bf16 gives about a hundredth of evidence where there is none."""

    @field_validator("audio", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _without_gaps(self) -> ExplainSettings:
        if self.hop > self.window:
            raise ValueError(f"hop {self.hop:g} is longer than window {self.window:g}: seconds would be left out")
        return self


class ServeSettings(Section):
    """The endpoint."""

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: int = Field(4, ge=1)
    max_queued_requests: int = Field(64, ge=1)
    request_timeout_s: float = Field(120.0, gt=0)
    max_body_bytes: int = Field(32 * 2**20, gt=0)
    max_new_tokens: int = Field(240, ge=1)
    cpus_per_replica: float = Field(1.0, gt=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    api_keys_file: str | None = None


class Settings(Section):
    """The whole tree."""

    storage: StorageSettings = StorageSettings()
    run: RunSettings = RunSettings()
    corpus: CorpusSettings = CorpusSettings()
    audio: AudioSettings = AudioSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    align: AlignSettings = AlignSettings()
    sft: SftSettings = SftSettings()
    dpo: DpoSettings = DpoSettings()
    prefer: PreferSettings = PreferSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    explain: ExplainSettings = ExplainSettings()
    import_weights: ImportSettings = ImportSettings()
    export: ExportSettings = ExportSettings()
    serve: ServeSettings = ServeSettings()

    def stage(self, name: StageName) -> TrainSettings:
        """Settings of one stage: its own explicit keys, then explicit ``train`` keys, then its defaults.

        Raises:
            UserError: they contradict each other.
        """
        stage: TrainSettings = getattr(self, name)
        shared = {key: getattr(self.train, key) for key in self.train.model_fields_set - stage.model_fields_set}
        resolved = stage.model_copy(update=shared)
        resolved.require_consistent(name)
        return resolved
