"""``python jobs/import_weights.py``: its checkpoint, its RESULT line, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.import_weights import main
from stetholm.errors import UserError
from stetholm.job import run_job
from stetholm.model import load_checkpoint
from stetholm.runs import start_checkpoint
from stetholm.settings import load_settings
from stetholm.storage import Storage
from tests.model.importing.published import live_encoder
from tests.model.tiny import tiny_base

ROOT = Path(__file__).parents[2]


def as_arguments(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def opera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OPERA-CE checkpoint as Lightning saves it."""
    state = {f"encoder.{key}": value for key, value in live_encoder().state_dict().items()}
    file = tmp_path_factory.mktemp("opera") / "encoder-operaCE.ckpt"
    torch.save({"state_dict": {**state, "g.weight": torch.ones(2, 1280)}, "epoch": 1}, file)
    return file


def chosen(run: str, file: Path | str, base: Path, *more: str) -> list[str]:
    return [f"run.name={run}", f"import_weights.weights={file}", f"model.language_model={base}", *more]


def test_the_whole_job(storage: Storage, base: Path, opera: Path) -> None:
    command = [sys.executable, "jobs/import_weights.py", *as_arguments(chosen("import", opera, base))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    result = json.loads(last.removeprefix("RESULT "))
    output = storage.join("runs/import/import_weights")
    expected = {"job": "import_weights", "output": output, "layout": "opera", "unused": 1, "missing": 0, "unknown": 0}
    assert {key: result[key] for key in expected} == expected and result["seconds"] >= 0
    assert lines[-1:] == [f"import_weights: {result['imported']} weights imported, 1 unused, 0 missing"]
    names = {uri.removeprefix(f"{output}/") for uri in storage.list(output)}
    files = {"config.json", "model.safetensors", "processor_config.json", "README.md", "settings.yaml", "lineage.json"}
    assert files | {"import_report.json", "result.json"} <= names
    report = storage.read_json(result["report"])
    assert report["unused"] == ["g.weight"] and len(report["imported"]) == result["imported"]
    lineage = storage.read_json(f"{output}/lineage.json")
    assert lineage["stage"] == "import_weights" and lineage["parent"] == str(opera)
    settings = load_settings(None, chosen("import", opera, base))
    assert start_checkpoint(settings, storage, before="align") == output, "the next stage begins with it"
    model, processor = load_checkpoint(output, storage)
    batch = processor(text="Is it normal?", audio=torch.rand(16_000).numpy(), sampling_rate=16_000)
    assert model.generate(**batch, max_new_tokens=2, eos_token_id=None).shape[1] == batch["input_ids"].shape[1] + 2


def test_again_does_nothing_and_other_weights_are_refused(
    storage: Storage, base: Path, opera: Path, tmp_path: Path
) -> None:
    def run(file: Path | str, *more: str) -> dict[str, Any]:
        return main(load_settings(None, chosen("again", file, base, *more)), storage)

    first = run(opera)
    written = storage.written(first["output"])
    assert run(opera) == first and storage.written(first["output"]) == written
    uri = storage.join("tests-import", "opera.ckpt")
    storage.write_bytes(uri, opera.read_bytes())
    assert run(uri) == first, "the same bytes, from storage"
    other = tmp_path / "other.ckpt"
    torch.save({f"encoder.{key}": value for key, value in live_encoder(seed=1).state_dict().items()}, other)
    with pytest.raises(UserError, match=r"other inputs \(weights_sha256\)"):
        run(other)


def test_a_misfit_is_status_2_and_all_keys_in_a_file(
    storage: Storage, base: Path, opera: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(opera)
    del content["state_dict"]["encoder.cnn1.bias"]
    torch.save(content, tmp_path / "part.ckpt")
    with pytest.raises(SystemExit) as ended:
        run_job("import_weights", main, as_arguments(chosen("import-part", tmp_path / "part.ckpt", base)))
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    uri = storage.join("runs/import-part/import_weights/import_report.json")
    assert "1 missing (model.audio_tower.stem.bias)" in line and line.endswith(f"all keys: {uri}")
    assert storage.read_json(uri)["missing"] == ["model.audio_tower.stem.bias"]
    settings = chosen("import-part", tmp_path / "part.ckpt", base, "import_weights.allow_partial=true")
    assert start_checkpoint(load_settings(None, settings), storage) is None
    result = main(load_settings(None, settings), storage)
    assert result["missing"] == 1 and storage.exists(f"{result['output']}/config.json")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (None, "names no file"),
        ("/none/such.pt", "does not exist"),
        ("s3://none-such/a.pt", "nothing at s3://none-such/a.pt"),
    ],
)
def test_no_file(storage: Storage, base: Path, weights: str | None, said: str) -> None:
    settings = [f"import_weights.weights={weights}"] if weights else []
    with pytest.raises(UserError, match=said):
        main(load_settings(None, ["run.name=none", *settings]), storage)
