"""The model, native to Hugging Face: importing this registers it with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from stetholm.model.checkpoint import load_checkpoint, save_checkpoint
from stetholm.model.configuration_stetholm import StethoLMConfig
from stetholm.model.fresh import build_model
from stetholm.model.lora import add_lora, merge_lora, reference, set_trainable
from stetholm.model.modeling_stetholm import StethoLMForConditionalGeneration, StethoLMModel
from stetholm.model.processing_stetholm import StethoLMProcessor

AutoConfig.register(StethoLMConfig.model_type, StethoLMConfig, exist_ok=True)
AutoModel.register(StethoLMConfig, StethoLMModel, exist_ok=True)
AutoModelForCausalLM.register(StethoLMConfig, StethoLMForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(StethoLMConfig, StethoLMForConditionalGeneration, exist_ok=True)
AutoProcessor.register(StethoLMConfig, StethoLMProcessor, exist_ok=True)

__all__ = [
    "StethoLMConfig",
    "StethoLMForConditionalGeneration",
    "StethoLMModel",
    "StethoLMProcessor",
    "add_lora",
    "build_model",
    "load_checkpoint",
    "merge_lora",
    "reference",
    "save_checkpoint",
    "set_trainable",
]
