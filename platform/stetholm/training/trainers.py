"""TRL's trainers on our batches: one small subclass a stage.

All three take their batches from a :class:`~stetholm.training.batches.StepBatches` and note in ``consumed`` which
samples each step used; loss, metrics and optimizer stay TRL's own except where a class says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from stetholm.model import StethoLMForConditionalGeneration, StethoLMProcessor
from stetholm.model.lora import reference
from stetholm.settings import AlignSettings, DpoSettings
from stetholm.training.batches import Batch, StepBatches
from stetholm.training.guard import Watched
from stetholm.training.losses import (
    anchor_loss,
    conditional_loss,
    contrastive_loss,
    mean_logps,
    response_lengths,
    scale_loss,
    text_groups,
)
from stetholm.training.ranks import from_all, rank, rows_from_all, world_size
from stetholm.training.response_head import install_response_head
from stetholm.training.zero import partition


class StageTrainer(Watched):
    """What the stages share. Mixed into a TRL trainer, before it."""

    batches: StepBatches
    consumed: list[tuple[int, str]]
    encoder_learning_rate: float | None = None
    optimizer: Any

    def use(self, batches: StepBatches) -> None:
        """Train on ``batches``, scoring response positions only."""
        self.batches = batches
        self.consumed = []
        install_response_head(self.model)  # type: ignore[attr-defined]
        # TRL would bring a dozen numbers together in each step for its metrics: each rank notes its own, and a log
        # line brings them together.
        self.accelerator.gather_for_metrics = _own  # type: ignore[attr-defined]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, of a model that is in parts already where ZeRO shares out weights."""
        if self.args.deepspeed is not None:  # type: ignore[attr-defined]
            partition(self.model, self.args.deepspeed)  # type: ignore[attr-defined]
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """The batches as they come: they are made and ordered already."""
        return DataLoader(self.batches, batch_size=None)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW; matrices decay, vectors do not; the encoder may have a learning rate of its own."""
        args = self.args  # type: ignore[attr-defined]
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():  # type: ignore[attr-defined]
            if parameter.requires_grad:
                own = self.encoder_learning_rate if ".audio_tower." in name else None
                decay = args.weight_decay if len(getattr(parameter, "ds_shape", parameter.shape)) > 1 else 0.0
                groups.setdefault((own or args.learning_rate, decay), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in groups.items()],
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            fused=True,
        )
        return self.optimizer

    def take(self, inputs: Batch) -> bool:
        """Note the step's samples; False if this rank has none left and only keeps step."""
        self.consumed = inputs.pop("samples")
        return bool(self.consumed)

    def note(self, **values: Tensor) -> None:
        """Add numbers to the next log line."""
        for key, value in values.items():
            self._metrics["train"][key].append(float(value.detach()))  # type: ignore[attr-defined]


class SftTrainer(StageTrainer, SFTTrainer):
    """Supervised fine-tuning: TRL's loss over response tokens."""

    keep_statistics = False
    """Batches are small here: an encoder that has been trained keeps the batch-norm statistics it was given."""

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """TRL's loss; a rank without samples has no labels and so adds zero."""
        self.take(inputs)
        if self.keep_statistics:
            self.accelerator.unwrap_model(model).model.audio_tower.eval()
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class AlignTrainer(StageTrainer, SFTTrainer):
    """Audio-text alignment: projected audio against the language model's own reading of the response.

    Our choice where the paper is silent, after AcuLa (arXiv 2512.04847); see docs/choices.md.
    """

    settings: AlignSettings

    def use_settings(self, settings: AlignSettings) -> None:
        """Weights and temperature of the losses."""
        self.settings = settings
        self._texts: dict[str, Tensor] = {}
        self._norm: Tensor | None = None

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """Contrastive loss and scale of the prefix, plus, if it has a weight, captioning through the projector.

        Loss and gradient, each averaged over the ranks, are those of one process with all their rows.
        """
        self.take(inputs)
        responses, rows = inputs.pop("responses"), inputs.pop("rows")
        module = self.accelerator.unwrap_model(model)
        prefix = module.encode_audio(inputs["input_features"]).index_select(0, inputs["audio_index"])
        texts, recordings = zip(*from_all((responses, len(rows) if responses else 0)), strict=True)
        scale = scale_loss(prefix.float(), self._text_norm(module))
        # A rank without samples adds zero, and so keeps step with the others' gradients.
        scale = scale * ((len(rows) if responses else 0) * len(texts) / max(sum(recordings), 1))
        means = prefix.float().mean(dim=1)
        contrast = self._contrast(module, _mean_by(means, rows, len(responses)) if responses else means[:0], texts)
        self.note(contrastive=contrast, scale=scale)
        loss = self.settings.contrastive_weight * contrast + self.settings.scale_weight * scale
        if self.settings.caption_weight:
            caption = self._caption(model, prefix, inputs, num_items_in_batch)
            self.note(caption=caption)
            loss = loss + self.settings.caption_weight * caption
        return loss

    def _contrast(
        self, module: StethoLMForConditionalGeneration, audio: Tensor, texts: Sequence[Sequence[str]]
    ) -> Tensor:
        """The contrastive loss over all ranks' rows: ``audio`` (N, d) of this rank's, the ``texts`` by rank."""
        parts = rows_from_all(audio, [len(part) for part in texts])
        parts[rank()] = audio  # with its gradient; the other ranks see to theirs
        responses = [text for part in texts for text in part]
        contrast = contrastive_loss(
            torch.cat(parts),
            self._represent(module, responses).to(audio),
            text_groups(responses).to(audio.device),
            self.settings.temperature,
        )
        # Each rank's gradient is a part of the sum, of which DeepSpeed makes a mean.
        return contrast + (len(texts) - 1) * (contrast - contrast.detach())

    def _caption(self, model: Any, prefix: Tensor, inputs: Batch, items: Tensor | int | None) -> Tensor:
        known = {key: inputs[key] for key in ("input_ids", "attention_mask", "labels")}
        outputs = model(**known, audio_embeds=prefix, fused_lm_head=True)
        total = -outputs.log_probs.sum()
        # The count is of all ranks, and gradients are averaged over them.
        return (
            total / max(int(outputs.label_mask.sum()), 1)
            if items is None
            else (total * self.accelerator.num_processes / items)
        )

    @torch.no_grad()
    def _text_norm(self, module: StethoLMForConditionalGeneration) -> Tensor:
        """Mean norm of the language model's embedded tokens (a thousand of them, over all the vocabulary)."""
        if self._norm is None:
            embed = cast(torch.nn.Embedding, module.get_input_embeddings())
            ids = torch.arange(0, embed.num_embeddings, -(-embed.num_embeddings // 1024), device=module.device)
            self._norm = embed(ids).float().norm(dim=-1).mean()
        return self._norm

    def _represent(self, module: StethoLMForConditionalGeneration, responses: list[str]) -> Tensor:
        """(N, d) representations of texts that are the same on all ranks; a collective call.

        The language model is frozen, so each text is read once, by one of the ranks.
        """
        fresh = [text for text in dict.fromkeys(responses) if text not in self._texts]
        if fresh:
            world = world_size()
            mine = fresh[rank() :: world]
            read = self._read(module, mine or fresh[:1])[: len(mine)]  # all read: ZeRO-3 gathers weights for it
            parts = rows_from_all(read, [len(fresh[number::world]) for number in range(world)])
            for number, part in enumerate(parts):
                self._texts |= zip(fresh[number::world], part, strict=True)
        return torch.stack([self._texts[text] for text in responses])

    @torch.no_grad()
    def _read(self, module: StethoLMForConditionalGeneration, texts: list[str]) -> Tensor:
        """(len(texts), d) mean of the last hidden states over each text's tokens."""
        tokenizer = cast(StethoLMProcessor, self.processing_class).tokenizer
        batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
        mask = batch["attention_mask"].to(module.device)
        hidden = module.hidden_states_of_text(batch["input_ids"].to(module.device), mask).float()
        return (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class MdpoTrainer(StageTrainer, DPOTrainer):
    """Multimodal DPO: TRL's length-averaged DPO term plus the conditional and the anchor term.

    One forward of the policy scores chosen-clean, rejected-clean and chosen-degraded rows together; the reference is
    the same model with the stage's adapter off and the projector of before, scored in each step or ahead.
    """

    settings: DpoSettings

    def use_settings(self, settings: DpoSettings) -> None:
        """Weights of the terms."""
        self.settings = settings
        gather = self.accelerator.gather
        # TRL's numbers by pair are metrics too; the Trainer's own, of no dimension, is not.
        self.accelerator.gather = lambda tensor: tensor if tensor.dim() else gather(tensor)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # batches come from `use`, tokenised already

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # the reference is scored by us: degraded audio differs by epoch

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """L = L_dpo (TRL) + lambda_conditional L_cond + lambda_anchor L_anchor."""
        weight = 1.0 if self.take(inputs) else 0.0
        module = self.accelerator.unwrap_model(model)
        labels, known = inputs["labels"], inputs.pop("reference", None)
        with torch.no_grad():  # the encoder is frozen: policy and reference hear the same
            pooled = module.model.pool_audio(inputs["input_features"])
        frozen = reference_logps(module, inputs, pooled) if known is None else known
        scored = score(model, module, inputs, pooled)
        policy = mean_logps(scored.log_probs, labels).chunk(3)
        before = (frozen / response_lengths(labels)).chunk(3)
        dpo = self._dpo(scored, inputs, frozen)
        s = self.settings
        conditional = conditional_loss(policy[0], policy[2], before[0], before[2], s.beta)
        anchor = anchor_loss(policy[0], before[0], s.beta, s.anchor_margin)
        self.note(
            dpo=dpo,
            conditional=conditional,
            anchor=anchor,
            audio_margin=(policy[0] - policy[2]).mean(),
            margin=(policy[0] - policy[1]).mean(),
        )
        return weight * (dpo + s.lambda_conditional * conditional + s.lambda_anchor * anchor)

    def _dpo(self, scored: Any, inputs: Batch, frozen: Tensor) -> Tensor:
        """TRL's own term, of the first 2N of the 3N rows."""
        rows = len(frozen) // 3 * 2
        ref_chosen, ref_rejected = frozen[:rows].chunk(2)
        return cast(
            Tensor,
            super()._compute_loss(
                _Scored(scored, rows),
                {
                    "input_ids": inputs["input_ids"][:rows],
                    "attention_mask": inputs["attention_mask"][:rows],
                    "completion_mask": (inputs["labels"][:rows] != -100).long(),
                    "ref_chosen_logps": ref_chosen,
                    "ref_rejected_logps": ref_rejected,
                },
                return_outputs=False,
            ),
        )


@torch.no_grad()
def reference_logps(module: StethoLMForConditionalGeneration, inputs: Batch, pooled: Tensor | None = None) -> Tensor:
    """(3N,) summed log-probabilities of a mDPO batch's responses by the policy before mDPO.

    Args:
        module: the model, with its response head installed and what mDPO trains set apart.
        inputs: of :class:`~stetholm.training.collate.Collate`.
        pooled: (U, width), what the encoder makes of ``input_features``, if that is known already.
    """
    with reference(module):
        pooled = module.model.pool_audio(inputs["input_features"]) if pooled is None else pooled
        summed: Tensor = score(module, module, inputs, pooled).log_probs.sum(dim=1)
    return summed


def score(model: Any, module: StethoLMForConditionalGeneration, inputs: Batch, pooled: Tensor) -> Any:
    """Per-token log-probabilities of 3N rows, each distinct spectrogram projected once."""
    return model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        audio_embeds=module.model.project_audio(pooled),
        audio_index=inputs["audio_index"],
        labels=inputs["labels"],
        fused_lm_head=True,
    )


class _Scored:
    """Stands where TRL expects a model: gives the first rows of a forward that has been made."""

    def __init__(self, outputs: Any, rows: int) -> None:
        self._outputs, self._rows = outputs, rows

    def __call__(self, **_: Any) -> Any:
        return type(self._outputs)(**{key: value[: self._rows] for key, value in vars(self._outputs).items()})


def _own(numbers: Any) -> Any:
    """What this rank has; stands where all ranks' would be gathered."""
    return numbers


def _mean_by(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """(count, d) means of the recordings of each row; ``rows`` (R,) says whose each recording is."""
    weights = F.one_hot(rows.to(values.device), count).to(values)
    return (weights.T @ values) / weights.sum(dim=0).clamp(min=1)[:, None]


def stub_dataset(processor: StethoLMProcessor) -> Dataset:
    """One row, because TRL's constructors look at the first; training never reads it."""
    token = processor.tokenizer.eos_token_id
    return Dataset.from_list([{"input_ids": [token], "labels": [token]}])


def trainer_for(
    stage: str,
    model: StethoLMForConditionalGeneration,
    processor: StethoLMProcessor,
    arguments: dict[str, Any],
    settings: Any,
) -> Any:
    """The trainer of ``stage`` (align, sft, dpo)."""
    if settings.gradient_checkpointing:
        # The decoder's layers; the encoder is small. Re-entrant checkpoints would run outside ZeRO-3's bookkeeping.
        decoder: Any = model.get_decoder()
        decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    shared = {
        "model": model,
        "processing_class": processor,
        "train_dataset": stub_dataset(processor),
        "data_collator": list,
    }
    if stage == "dpo":
        dpo = DPOConfig(
            **arguments,
            beta=settings.beta,
            loss_type=list(settings.loss_type),
            loss_weights=list(settings.loss_weights) if settings.loss_weights else None,
            label_smoothing=settings.label_smoothing,
            precompute_ref_log_probs=True,
        )
        trainer: Any = MdpoTrainer(args=dpo, **shared)
        trainer.use_settings(settings)
        return trainer
    config = SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True})
    if stage == "align":
        trainer = AlignTrainer(args=config, **shared)
        trainer.use_settings(settings)
    else:
        trainer = SftTrainer(args=config, **shared)
    trainer.encoder_learning_rate = settings.encoder_learning_rate
    return trainer
