"""DeepSpeed ZeRO configurations, one a stage of partitioning."""

from __future__ import annotations

from typing import Any

from stetholm.settings import TrainSettings

BUCKET = 10**7
"""Numbers reduced or gathered at once. What trains is small: DeepSpeed's own 5e8 would be gigabytes of buffer."""


def zero_config(train: TrainSettings, batch_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for ``train.zero_stage`` and ``train.offload``.

    Precision is left to the model (its trainable parameters are fp32, the frozen language model may be bf16), so
    DeepSpeed casts nothing. The optimizer is torch's AdamW also where its state waits on the CPU: DeepSpeed's own is
    compiled for a minute on first use and is no faster for the few parameters that train.

    Args:
        train: the stage's settings.
        batch_size: samples a worker and step, for DeepSpeed's own bookkeeping.
    """
    return {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": _zero(train),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def partition(model: Any, config: dict[str, Any]) -> None:
    """Share out the weights of ``model`` among the ranks, one after the other, where ZeRO-3 is to; a collective call.

    DeepSpeed's engine would first put the whole model on each rank's device. What is no parameter goes there too.

    Args:
        model: whole, on the CPU.
        config: of :func:`zero_config`.
    """
    if config["zero_optimization"]["stage"] != 3:
        return
    import deepspeed

    shared = deepspeed.zero.Init(module=model, config_dict_or_path=config)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(shared.local_device)


def _zero(train: TrainSettings) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": train.zero_stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    if train.zero_stage == 3:
        # Small frozen and trainable parameters differ in dtype; persistent ones would be gathered in one buffer.
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": False}
    # Pinned memory is for copies to a GPU.
    on_cpu = {"device": "cpu", "pin_memory": train.use_gpu}
    if train.offload != "none":
        zero["offload_optimizer"] = on_cpu
    if train.offload == "all":
        zero["offload_param"] = on_cpu
    return zero
