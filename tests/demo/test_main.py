"""The demo's command line."""

import pytest

from stetholm.demo.__main__ import again, arguments, main, overrides


def test_own_recordings_become_settings_with_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").touch()
    parsed = arguments(["--run", "mine", "--jsonl", "pairs.jsonl", "--audio", ".", "--set", "train.max_steps=2"])
    assert overrides(parsed) == [
        "run.name=mine",
        "corpus.source=stethobench",
        f"corpus.jsonl={tmp_path / 'pairs.jsonl'}",
        f"corpus.audio={tmp_path}",
        "train.max_steps=2",
    ]
    assert again(parsed) == "make demo RUN=mine JSONL=pairs.jsonl AUDIO=. SET=train.max_steps=2"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--jsonl", "none.jsonl", "--audio", "."], "JSONL=none.jsonl: no such file"),
        (["--audio", "."], "both JSONL=<file> and AUDIO=<folder>"),
        (["--set", "train.max_stepz=2"], "train.max_steps"),
        (["--run", "no/slash"], "run.name"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STETHOLM_HOME", str(tmp_path))
    assert main(given) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "logs").exists()
