"""Weights files: what is read, and one clear line for what is not. Nothing in a file is ever run."""

import collections
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from stetholm.errors import UserError
from stetholm.model.importing.reading import read_state

STATE = {"cnn1.weight": torch.arange(6.0).view(2, 3), "cnn1.bias": torch.ones(2)}


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[key], STATE[key]) for key in STATE)


def refused(file: Path) -> str:
    with pytest.raises(UserError) as error:
        read_state(file)
    message = str(error.value)
    assert str(file) in message and "\n" not in message, message
    return message


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        collections.OrderedDict(STATE),
        {"state_dict": STATE, "epoch": 3, "hyper_parameters": {"p": 0.1}, "callbacks": {"best": torch.tensor(1.0)}},
        {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        {"audio_encoder_state_dict": STATE},
        {f"module.{key}": value for key, value in STATE.items()},
        {f"_orig_mod.module.{key}": value for key, value in STATE.items()},
        {"cnn1._orig_mod.weight": STATE["cnn1.weight"], "cnn1.bias": torch.nn.Parameter(STATE["cnn1.bias"])},
    ],
    ids=["bare", "ordered", "lightning", "wrapped", "acula", "data-parallel", "compiled", "inner"],
)
def test_what_training_scripts_save(content: Any, saved: Callable[..., Path]) -> None:
    assert same(read_state(saved(content)))


def test_safetensors_by_whatever_name(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "weights.pt"):
        save_file(STATE, tmp_path / name)
        assert same(read_state(tmp_path / name))


def test_the_tensors_stay_on_disk(saved: Callable[..., Path]) -> None:
    """Mapped, not copied: what is written to the file afterwards would show."""
    big = torch.zeros(1 << 20)
    file = saved({"big": big})
    tensor = read_state(file)["big"]
    at = file.read_bytes().index(b"\0" * big.nbytes)
    with file.open("r+b") as opened:
        opened.seek(at + 64)
        opened.write(torch.tensor([7.0]).numpy().tobytes() * 64)
    assert tensor.max() == 7


class Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_code_in_a_pickle_is_named_and_not_run(saved: Callable[..., Path], tmp_path: Path) -> None:
    target = tmp_path / "ran"
    message = refused(saved({"state_dict": STATE, "bomb": Bomb(target)}))
    assert "holds Python objects besides tensors" in message and "mkdir" in message
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(target)))
    assert "old format or a plain pickle" in refused(tmp_path / "plain.pt")
    assert not target.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_cut_short(share: float, saved: Callable[..., Path], tmp_path: Path) -> None:
    whole = saved({"w": torch.rand(1000)})
    save_file(STATE, tmp_path / "w.safetensors")
    for file in (whole, tmp_path / "w.safetensors"):
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])
        assert ("is empty" if share == 0 else "damaged or cut short") in refused(file)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 713000000\n", "git lfs pull"),
        (b"RIFF....WAVEfmt ", "neither a torch checkpoint nor a safetensors file"),
        (b"PK\x03\x04 and then nothing of a zip", "damaged or cut short"),
    ],
    ids=["html", "lfs", "wav", "zip"],
)
def test_other_files(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(data)
    assert said in refused(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.ones(3),
        {},
        {"epoch": 3},
        {"state_dict": {"a": {"b": torch.ones(1)}}},
        {1: torch.ones(1)},
        {"sparse": torch.eye(3).to_sparse()},
        {"eighth": torch.ones(2).to(torch.float8_e4m3fn)},
        {"meta": torch.ones(2, device="meta")},
    ],
    ids=["list", "tensor", "empty", "number", "nested", "keys", "sparse", "float8", "meta"],
)
def test_no_state_dict(content: Any, saved: Callable[..., Path]) -> None:
    assert "holds no state dict" in refused(saved(content))


def test_nothing_there_and_odd_files(tmp_path: Path, saved: Callable[..., Path]) -> None:
    assert "does not exist" in refused(tmp_path / "none.pt")
    assert "is a folder" in refused(tmp_path)
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "old format" in refused(tmp_path / "old.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "TorchScript" in refused(tmp_path / "script.pt")
    twice = {"module.a": torch.ones(1), "a": torch.ones(1)}
    assert "holds a twice" in refused(saved(twice))


HEADS = [b"", b"PK\x03\x04", b"\0" * 8 + b"{", b"\x02" + b"\0" * 7 + b"{}"]


@given(
    data=st.binary(max_size=300),
    head=st.sampled_from(HEADS),
)
def test_any_bytes_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.pt"
    file.write_bytes(head + data)
    assert str(file) in refused(file)


@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    file = tmp_path_factory.getbasetemp() / "changed.pt"
    torch.save(STATE, file)
    data = bytearray(file.read_bytes())
    data[at % len(data)] = value
    file.write_bytes(data)
    try:
        read_state(file)
    except UserError as error:
        assert "\n" not in str(error)
