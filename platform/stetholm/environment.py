"""Environment variables that libraries read when they are imported, so they are set before anything else.

Each is a default: what the user has set stays.
"""

import logging
import os

DEFAULTS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; unset it is a warning in every job
    "RAY_DEDUP_LOGS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints each line of a worker twice, and what was meant for a file
    # Nothing of a clinic's machine is reported anywhere.
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",  # tokenizers are used in processes that fork
}

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)

# transformers imports DeepSpeed whenever it saves a model, and DeepSpeed then warns that there is no GPU.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
