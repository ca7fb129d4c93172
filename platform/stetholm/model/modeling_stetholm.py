"""The model: audio tower, projector and any causal language model, as Hugging Face classes.

``StethoLMModel`` has no head; ``StethoLMForConditionalGeneration`` is ``.model`` + ``.lm_head`` and generates.
A recording enters the prompt as a block of ``prefix_tokens`` placeholders, replaced by its embeddings.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from stetholm.model.beams import SharedPrompts
from stetholm.model.configuration_stetholm import StethoLMConfig
from stetholm.model.encoders import build_encoder
from stetholm.model.encoders.base import N_FRAMES, N_MELS
from stetholm.model.exact import apply_keeping_buffers
from stetholm.model.loading import CheckpointedModel
from stetholm.model.lora import inject_lora
from stetholm.model.projector import PrefixProjector
from stetholm.model.response import ResponseTokens, recordings_of, repeat_recordings

HOLD_THEIRS = "give recordings with input_ids; inputs_embeds hold theirs already (StethoLMModel.embed)"


class StethoLMPreTrainedModel(CheckpointedModel):
    """What both classes share: configuration, initialisation, loading and saving."""

    config_class = StethoLMConfig
    config: StethoLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The loss takes num_items_in_batch, so the Trainer need not rescale it.
    accepts_loss_kwargs = True
    # Batch norm's statistics stay float32 (see FloatBatchNorm2d), also where transformers puts weights in place.
    _keep_in_fp32_modules_strict = frozenset({"running_mean", "running_var"})  # type: ignore[assignment]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        apply_keeping_buffers(self, lambda: super(StethoLMPreTrainedModel, self)._apply(fn, recurse))
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own initialisation for the projector and the stem; the parts from transformers bring theirs."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)


class StethoLMModel(StethoLMPreTrainedModel):
    """Audio tower + projector + language model without head.

    Args:
        config: the whole configuration.
        language_model: a loaded decoder to use as it is; None builds a random one from ``config.text_config``.
    """

    def __init__(self, config: StethoLMConfig, language_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.audio_tower = build_encoder(config.audio_encoder, config.audio_config)
        self.projector = PrefixProjector(
            self.audio_tower.width, config.width, config.prefix_tokens, config.projector_dropout
        )
        self.reference_projector: PrefixProjector | None = None
        """Frozen copy of the projector, made for mDPO; never saved."""
        self.use_reference = False
        if language_model is None:
            language_model = AutoModel.from_config(config.text_config)
        else:
            mark_initialised(language_model)
        self.language_model = language_model
        # The decoder's live configuration: it knows the attention implementation (without one, transformers would
        # run attention unmasked).
        config.text_config = language_model.config
        for name, adapter in (config.lora or {}).items():
            inject_lora(language_model, name, adapter)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return cast(nn.Module, self.language_model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> StethoLMModel:
        """As in torch, but a frozen encoder stays in eval mode: its batch-norm statistics are frozen too."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.audio_tower.parameters()):
            self.audio_tower.eval()
        return self

    def encode_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """Log-mel ``input_features`` (R, 64, 218) -> prefix embeddings (R, prefix_tokens, d).

        Raises:
            ValueError: the shape is another.
        """
        if input_features.dim() != 3 or input_features.shape[1:] != (N_MELS, N_FRAMES):
            raise ValueError(
                f"input_features has shape {tuple(input_features.shape)}: expected (recordings, {N_MELS}, {N_FRAMES}), "
                "as StethoLMProcessor makes it"
            )
        return self.project_audio(self.pool_audio(input_features))

    def pool_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """The encoder alone: (R, 64, 218) -> (R, width)."""
        first: Any = self.projector.model[0]
        return cast(torch.Tensor, self.audio_tower(input_features.to(first.weight.dtype)))

    def project_audio(self, pooled: torch.Tensor) -> torch.Tensor:
        """The projector in use alone: (R, width) -> (R, prefix_tokens, d)."""
        projector = self.reference_projector if self.use_reference else self.projector
        return cast(torch.Tensor, cast(nn.Module, projector)(pooled))

    def embed(
        self,
        input_ids: torch.Tensor,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        audio_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings (N, T, d) of a prompt, placeholders replaced by the recordings' in order.

        Args:
            input_ids: (N, T).
            input_features: (R, 64, 218), or
            audio_embeds: (R, prefix_tokens, d), what :meth:`encode_audio` made of them.
            audio_index: which of these each recording of the prompts is, so none is encoded twice; default: its own.

        Raises:
            ValueError: the placeholders are not ``prefix_tokens`` a recording.
        """
        placeholders = input_ids == self.config.audio_token_id
        # Placeholders may lie beyond the vocabulary: look up token 0 in their place.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(placeholders, 0))
        if audio_embeds is None and input_features is not None and len(input_features):
            audio_embeds = self.encode_audio(input_features)
        if audio_embeds is not None and audio_index is not None:
            # Not audio_embeds[audio_index]: its gradient on a CPU adds up in an order that changes from run to run.
            audio_embeds = audio_embeds.index_select(0, audio_index)
        self.recordings_of(input_ids, 0 if audio_embeds is None else len(audio_embeds))
        if audio_embeds is None:
            return self._touch_audio(embeds)
        source = audio_embeds.to(embeds.dtype).reshape(-1, embeds.shape[-1])
        return cast(torch.Tensor, embeds.masked_scatter(placeholders.unsqueeze(-1), source))

    def recordings_of(self, input_ids: torch.Tensor, recordings: int) -> list[int]:
        """As :func:`stetholm.model.response.recordings_of`."""
        return recordings_of(input_ids, recordings, self.config.audio_token_id, self.config.prefix_tokens)

    def _touch_audio(self, embeds: torch.Tensor) -> torch.Tensor:
        """In training, let a batch without recordings depend on the audio parts too.

        Otherwise a data-parallel rank with such a batch would have no gradients for them where others have,
        and under ZeRO-3 would not gather them.
        """
        if not self.training or not torch.is_grad_enabled():
            return embeds
        was_training = self.audio_tower.training
        self.audio_tower.eval()  # silence must not enter the batch-norm statistics
        silence = torch.zeros(1, N_MELS, N_FRAMES, device=embeds.device)
        nothing = self.encode_audio(silence).sum() * 0
        self.audio_tower.train(was_training)
        return embeds + nothing.to(embeds.dtype)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        audio_index: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (N, T, d) of the language model; arguments as in :meth:`embed` and in transformers."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            inputs_embeds = self.embed(input_ids, input_features, audio_embeds, audio_index)
        elif input_features is not None or audio_embeds is not None:
            raise ValueError(HOLD_THEIRS)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = positions(attention_mask)[:, -inputs_embeds.shape[1] :]
        known = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
        return cast(
            BaseModelOutputWithPast,
            self.language_model(**known, past_key_values=past_key_values, use_cache=use_cache, **kwargs),
        )


class StethoLMForConditionalGeneration(StethoLMPreTrainedModel, SharedPrompts, GenerationMixin):
    """The whole model: :class:`StethoLMModel` and the language model's head.

    Args:
        config: the whole configuration.
        causal_lm: a loaded ``AutoModelForCausalLM`` whose decoder and head to use; None builds random ones.
    """

    def __init__(self, config: StethoLMConfig, causal_lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.model = StethoLMModel(config, None if causal_lm is None else causal_lm.get_decoder())
        if causal_lm is None:
            self.lm_head = nn.Linear(config.width, config.text.vocab_size, bias=config.head_bias)
        else:
            self.lm_head = mark_initialised(causal_lm.get_output_embeddings())
        embeddings = self.model.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is getattr(self, "lm_head", None):
            init.normal_(self.lm_head.weight, std=getattr(self.config.text_config, "initializer_range", 0.02))
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = cast(nn.Linear, value)

    def get_decoder(self) -> nn.Module:
        """The language model without head."""
        return self.model.language_model

    def encode_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """As :meth:`StethoLMModel.encode_audio`."""
        return self.model.encode_audio(input_features)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head on hidden states (..., d) -> (..., vocabulary), with Gemma's soft cap where the model has one."""
        # Of a slice that is not contiguous, torch would multiply row by row with copies of the head: seconds on a CPU.
        logits: torch.Tensor = self.lm_head(hidden.contiguous())
        cap = getattr(self.config.text_config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | float | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, or with ``labels`` the loss alone.

        With ``labels`` (N, T; -100 where nothing is predicted) the head is applied to response positions only;
        the loss is their cross-entropy, summed and divided by ``num_items_in_batch`` if given, else by their number.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            input_features=input_features,
            audio_embeds=audio_embeds,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=False if labels is not None else use_cache,
            **kwargs,
        )
        loss: Any = None
        logits: Any = None
        if labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.logits(outputs.last_hidden_state[:, keep])
        else:
            loss = ResponseTokens.select(outputs.last_hidden_state, labels).loss(self.logits, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def response_logps(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed log-probability of each response (N,) in float32, and its number of tokens (N,)."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            input_features=input_features,
            audio_embeds=audio_embeds,
            use_cache=False,
        )
        return ResponseTokens.select(outputs.last_hidden_state, labels).logps(self.logits)

    def hidden_states_of_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Last hidden states (N, T, d) of the language model on text alone."""
        embeds = self.get_input_embeddings()(input_ids)
        outputs = self.model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False)
        return cast(torch.Tensor, outputs.last_hidden_state)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; the recordings are encoded once, however many sequences are returned.

        ``inputs_embeds`` (N, T, d), as :meth:`StethoLMModel.embed` makes them, hold their recordings already.
        """
        if audio_embeds is None and input_features is not None and len(input_features):
            audio_embeds = self.encode_audio(input_features)
        if audio_embeds is not None and kwargs.get("inputs_embeds") is not None:
            raise ValueError(HOLD_THEIRS)
        return cast(Any, super()).generate(inputs, *args, audio_embeds=audio_embeds, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The recordings enter on the first step; afterwards they are in the cache.

        ``inputs_embeds`` is named because transformers looks for it here before it takes embeddings for a prompt.
        """
        inputs = cast(Any, super()).prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs["audio_embeds"] = None
        return cast(dict[str, Any], inputs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat each prompt, with its recordings, however many it has."""
        audio = model_kwargs.pop("audio_embeds", None)
        if audio is not None and input_ids is not None:
            audio = repeat_recordings(audio, self.model.recordings_of(input_ids, len(audio)), expand_size)
        ids, model_kwargs = cast(Any, super())._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return ids, {**model_kwargs, "audio_embeds": audio}


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids (N, T) that count real tokens only, so that left padding does not shift a prompt."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def mark_initialised(module: Any) -> Any:
    """Tell transformers to leave the weights of ``module`` as they are."""
    for part in module.modules():
        part._is_hf_initialized = True
    return module
