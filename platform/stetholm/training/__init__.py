"""The three training stages: alignment, supervised fine-tuning and multimodal DPO."""
