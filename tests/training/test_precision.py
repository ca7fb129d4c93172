"""Number formats: what the processor can, what was asked for, what trains in fp32."""

from __future__ import annotations

import pytest
import torch

from stetholm.model.dtype import cpu_has_bf16
from stetholm.model.loading import is_own
from stetholm.training.precision import frozen_dtype, to_training_precision
from tests.serving.tiny import tiny_model


@pytest.mark.parametrize(
    ("flags", "able"),
    [("flags : avx2 avx512_bf16 sse", True), ("flags : amx_bf16", True), ("flags : avx2 avx512f", False), ("", False)],
)
def test_bf16_is_read_from_the_processor_s_flags(tmp_path, flags, able):
    file = tmp_path / "cpuinfo"
    file.write_text(flags)
    assert cpu_has_bf16(file) is able


def test_an_unknown_processor_has_none(tmp_path):
    assert not cpu_has_bf16(tmp_path / "nothing")


def test_precision_as_asked():
    assert frozen_dtype("fp32", use_gpu=False) is torch.float32
    assert frozen_dtype("bf16", use_gpu=False) is torch.bfloat16
    assert frozen_dtype("auto", use_gpu=False) is (torch.bfloat16 if cpu_has_bf16() else torch.float32)


def test_what_trains_is_fp32_and_the_language_model_stays():
    model = tiny_model()[0].to(torch.bfloat16)
    to_training_precision(model)
    types = {(is_own(name), parameter.dtype) for name, parameter in model.named_parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
