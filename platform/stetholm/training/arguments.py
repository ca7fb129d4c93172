"""The Trainer's arguments, from our settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stetholm.settings import TrainSettings
from stetholm.training.zero import zero_config


def trainer_arguments(train: TrainSettings, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Keyword arguments for SFTConfig and DPOConfig.

    AdamW's betas and epsilon and the linear schedule are the published ones (arXiv 2603.00355, training details).

    Args:
        train: the stage's settings, resolved.
        seed: run.seed.
        steps: optimizer steps of the whole run.
        folder: a scratch folder of this worker.
    """
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": round(train.warmup_fraction * steps),
        "weight_decay": train.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "max_grad_norm": train.max_grad_norm,
        "deepspeed": zero_config(train, train.batch_size),
        "seed": seed,
        "use_cpu": not train.use_gpu,
        # The frozen part has its precision already and what trains is fp32: no autocast on top.
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_strategy": "no",  # training.monitor logs
        "logging_nan_inf_filter": False,
        "log_level": "error",
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "average_tokens_across_devices": True,
        "max_length": None,
    }
