"""Which engine is loaded."""

import pytest

from stetholm.errors import UserError
from stetholm.serving import Request, Sampling, load
from stetholm.serving.load import choose_engine, load_engine
from stetholm.serving.transformers_engine import TransformersEngine
from tests.serving.tiny import save_tiny


@pytest.mark.parametrize(
    ("kind", "gpu", "installed", "expected"),
    [
        ("auto", True, True, "vllm"),
        ("auto", True, False, "transformers"),
        ("auto", False, True, "transformers"),
        ("vllm", False, False, "vllm"),
        ("transformers", True, True, "transformers"),
    ],
)
def test_auto_is_vllm_on_a_gpu_where_it_is_installed(monkeypatch, kind, gpu, installed, expected):
    monkeypatch.setattr(load, "vllm_installed", lambda: installed)
    assert choose_engine(kind, gpu) == expected


def test_an_engine_that_is_not_installed_says_how_to_get_it(monkeypatch, storage, tmp_path):
    monkeypatch.setattr("stetholm.serving.vllm_start.vllm_installed", lambda: False)
    with pytest.raises(UserError, match=r"setup_env\.py --vllm"):
        load_engine(str(save_tiny(tmp_path)), storage, "vllm")


def test_auto_goes_on_with_the_reference_where_vllm_does_not_start(monkeypatch, storage, tmp_path):
    def fail(*_: object) -> None:
        raise UserError("vLLM does not start")

    monkeypatch.setattr(load, "choose_engine", lambda kind, gpu: "vllm")
    monkeypatch.setattr(load, "require_vllm", lambda: None)
    monkeypatch.setattr(load, "vllm_engine", fail)
    folder = str(save_tiny(tmp_path))
    engine = load_engine(folder, storage, "auto")
    assert isinstance(engine, TransformersEngine)
    [[answer]] = engine.generate_many([Request("Is this normal?", sampling=Sampling(max_new_tokens=3))])
    assert answer.completion_tokens == 3
    engine.close()
    with pytest.raises(UserError, match="does not start"):
        load_engine(folder, storage, "vllm")
