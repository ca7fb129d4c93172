"""The benchmark runner: names, and the lines it writes."""

import json

import pytest

from benchmarks import report
from benchmarks.run import BENCHES, chosen, function


def test_groups_names_and_all():
    assert chosen(["all"]) == list(BENCHES)
    assert chosen(["data"]) == [f"data/{name}" for name in ("bare", "published", "wait", "resume", "memory")]
    assert chosen(["generate/prefer", "generate"]) == [
        f"generate/{name}" for name in ("prefer", "evaluate", "published")
    ]


@pytest.mark.parametrize("word", ["data/none", "x"])
def test_what_there_is_not_is_said(word):
    with pytest.raises(SystemExit, match="there is no benchmark"):
        chosen([word])


@pytest.mark.parametrize("name", BENCHES)
def test_every_name_has_its_function(name):
    assert callable(function(name))


def test_a_line_holds_what_the_contract_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    report.publish(report.Result("data/bare", 30.0, 20.0, "clips/s", "a loop", {"clips": 3}))
    line = json.loads(capsys.readouterr().out)
    assert {"bench", "ours", "baseline", "unit", "ratio", "baseline_is", "config", "device"} <= line.keys()
    assert line["ratio"] == 1.5
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == line
