"""DeepSpeed ZeRO configurations, one a stage of partitioning."""

from __future__ import annotations

from typing import Any

from stetholm.settings import TrainSettings


def zero_config(train: TrainSettings, batch_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for ``train.zero_stage``.

    Precision is left to the model (its trainable parameters are fp32, the frozen language model may be bf16), so
    DeepSpeed casts nothing.

    Args:
        train: the stage's settings.
        batch_size: samples a worker and step, for DeepSpeed's own bookkeeping.
    """
    # What trains is small: DeepSpeed's own buckets of 5e8 numbers would be gigabytes of buffer.
    zero: dict[str, Any] = {"stage": train.zero_stage, "reduce_bucket_size": 10**7, "allgather_bucket_size": 10**7}
    if train.zero_stage == 3:
        # Small frozen and trainable parameters differ in dtype; persistent ones would be gathered in one buffer.
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": False}
    return {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
