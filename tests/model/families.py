"""Small random language models of the true classes, each with a tokenizer and a chat template of its family's kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tests.model.tiny import TEXT

SIZE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n<|eot_id|>' }}"
    "{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN2_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
PHI_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """One kind of language model.

    Attributes:
        config: makes its configuration.
        class_name: what AutoModelForCausalLM makes of it.
        special: its special tokens; BOS (or None), EOS, pad (or None) by ``names``.
        template: its chat template, shortened.
        adapted: the linear layers that get LoRA.
        marker: special token before the text of a plain prompt.
        bos_first: whether the tokenizer puts BOS before a text.
    """

    config: Callable[[], Any]
    class_name: str
    special: tuple[str, ...]
    names: dict[str, str]
    template: str
    adapted: frozenset[str] = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
    marker: str = ""
    bos_first: bool = False
    targets: tuple[str, ...] | None = None


def _gemma() -> Gemma3Config:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **SIZE,
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, eos_token_id=[1, 4]
    )


def _llama() -> LlamaConfig:
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 500_000.0,
    }
    ends = [1, 2]
    return LlamaConfig(**SIZE, head_dim=8, rope_parameters=rope, tie_word_embeddings=True, eos_token_id=ends)


def _phi() -> Phi3Config:
    factors = [1.0, 1.1, 1.2, 1.3]
    rope = {"type": "longrope", "short_factor": factors, "long_factor": [4 * factor for factor in factors]}
    ends = {"eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None}
    return Phi3Config(**SIZE, **ends, rope_scaling=rope, original_max_position_embeddings=256, sliding_window=400)


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "gemma3": Family(
        _gemma,
        "Gemma3ForConditionalGeneration",
        ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<end_of_image>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        GEMMA_TEMPLATE,
        marker="<end_of_image>",
        bos_first=True,
    ),
    "llama3.2": Family(
        _llama,
        "LlamaForCausalLM",
        ("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        LLAMA_TEMPLATE,
        bos_first=True,
    ),
    "qwen2": Family(
        lambda: Qwen2Config(**SIZE, tie_word_embeddings=True, bos_token_id=None, eos_token_id=2),
        "Qwen2ForCausalLM",
        _IM,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        QWEN2_TEMPLATE,
    ),
    "qwen3": Family(
        lambda: Qwen3Config(**SIZE, head_dim=16, tie_word_embeddings=False, bos_token_id=None, eos_token_id=2),
        "Qwen3ForCausalLM",
        _IM,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        QWEN3_TEMPLATE,
    ),
    "phi3": Family(
        _phi,
        "Phi3ForCausalLM",
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        PHI_TEMPLATE,
        adapted=frozenset({"qkv_proj", "o_proj"}),
    ),
    "gpt2": Family(
        lambda: GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=512, eos_token_id=0),
        "GPT2LMHeadModel",
        ("<|endoftext|>", "<|user|>", "<|assistant|>"),
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}{{ '<|assistant|>' }}",
        adapted=frozenset({"c_attn"}),
        targets=("c_attn",),
    ),
}


def family_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the family's special tokens, BOS habit and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(token, special=True) for token in family.special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if family.bos_first:
        bos = family.names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=family.template, **family.names)


def family_base(folder: Path, kind: str) -> Path:
    """The random language model ``kind`` and its tokenizer, as a user would have them in a folder."""
    torch.manual_seed(1)
    family = FAMILIES[kind]
    config = family.config()
    causal: Any = AutoModelForCausalLM
    model = Gemma3ForConditionalGeneration(config) if kind == "gemma3" else causal.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform answers, so that a wrong position would show
    model.save_pretrained(folder)
    family_tokenizer(family).save_pretrained(folder)
    return folder
