"""The synthesize job: into a corpus, killed and continued, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stetholm import completions
from stetholm.corpus.ingest import ingest
from stetholm.corpus.manifest import Manifest
from stetholm.corpus.schema import TASKS, parse_line
from stetholm.corpus.synthesis.job import synthesize
from stetholm.corpus.synthesis.plan import plan_pairs
from stetholm.corpus.synthesis.recordings import read_labelled
from stetholm.errors import UserError
from stetholm.settings import CorpusSettings, RunSettings, Settings, SettingsError, SynthesizeSettings, load_settings
from stetholm.settings.data import SyntheticSettings
from stetholm.storage import Storage
from tests.corpus.sounds import pair, write_source
from tests.corpus.synthesis.known import answer, good_answers, icbhi
from tests.endpoint import Reply, endpoint, reply

ROOT = Path(__file__).parents[3]


def rows(storage: Storage, uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_text(uri).splitlines()]


def answers_of(settings: Settings, storage: Storage, tmp_path: Path) -> dict[str, str]:
    labelled = read_labelled(settings, storage, tmp_path)
    return good_answers(plan_pairs(labelled, settings.synthesize, settings.run.seed))


@pytest.mark.usefixtures("ray_cluster")
def test_the_embedded_corpus_becomes_pairs_that_ingest_reads(storage: Storage, capsys: pytest.CaptureFixture[str]):
    settings = Settings(
        run=RunSettings(name="test-synthesize-synthetic"),
        corpus=CorpusSettings(synthetic=SyntheticSettings(patients=12, seconds=1.5)),
        synthesize=SynthesizeSettings(pairs_per_recording=6),
    )
    made = synthesize(settings, storage)
    assert made["asked"] == made["pairs"] == sum(made["tasks"].values()) and not made["rejected"]
    assert set(made["tasks"]) == set(TASKS)
    assert "| all | – |" in capsys.readouterr().out
    written = storage.written(made["output"])
    assert synthesize(settings, storage) == made and storage.written(made["output"]) == written

    corpus = CorpusSettings(jsonl=made["output"], audio=made["audio"])
    taken = ingest(settings.model_copy(update={"corpus": corpus}), storage)
    assert taken["pairs"] == made["pairs"] and taken["rejected"] == 0
    manifest = Manifest.load(storage, taken["output"])
    assert set(manifest.splits) <= {"train", "val", "test"}
    for row, line in zip(rows(storage, made["output"]), storage.read_bytes(made["output"]).splitlines(), strict=True):
        parsed = parse_line(line, 1)
        assert parsed.model == "templates" and parsed.patient and parsed.site and row["labels"]


def test_a_killed_job_pays_nothing_twice(storage: Storage, tmp_path: Path):
    settings = icbhi(tmp_path, 40, writer="openai", concurrency=4, pairs_per_recording=3)
    answers = answers_of(settings, storage, tmp_path)
    chosen = ["corpus.source=icbhi", f"corpus.audio={tmp_path}/icbhi", f"run.name={tmp_path.name}",
              "synthesize.writer=openai", "synthesize.model=m", "synthesize.concurrency=4",
              "synthesize.pairs_per_recording=3"]  # fmt: skip

    def start(url: str) -> subprocess.Popen[str]:
        command = [sys.executable, "jobs/synthesize.py"]
        for setting in (*chosen, f"synthesize.base_url={url}"):
            command += ["--set", setting]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with endpoint(lambda body, n: reply(answers[body["messages"][1]["content"]], wait=0.05)) as server:
        first = start(server.url)
        until = time.monotonic() + 120
        while len(server.seen) < 40 and first.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        _, said = first.communicate()
        assert first.returncode == -signal.SIGKILL, said
        time.sleep(0.2)  # the server finishes the questions that were on their way
        asked = len(server.seen)
        stored = [line for uri in storage.list(storage.join("runs", tmp_path.name, "synthesize", "answers"))
                  for line in storage.read_text(uri).splitlines()]  # fmt: skip
        assert asked - 4 <= len(stored) <= asked, "at most the questions on their way were paid in vain"
        second = start(server.url)
        out, said = second.communicate(timeout=300)
        assert second.returncode == 0, said
        result = json.loads(out.splitlines()[-1].removeprefix("RESULT "))
        assert result["job"] == "synthesize" and result["pairs"] == result["asked"] > 60
        assert len(server.seen) - asked == result["asked"] - len(stored)
        assert f"{len(stored)} answers are there already" in out and "tokens in" in out


def openai(tmp_path: Path, url: str, **changes: Any) -> Settings:
    return icbhi(
        tmp_path, 8, **{"writer": "openai", "model": "m", "base_url": url, "attempts": 1, "timeout_s": 5, **changes}
    )


def test_what_got_no_answer_is_asked_again_by_the_same_command(storage: Storage, tmp_path: Path):
    answers = answers_of(openai(tmp_path, "http://127.0.0.1:1/v1"), storage, tmp_path)
    broken = {3, 9}

    def behaviour(body: dict[str, Any], n: int) -> Reply:
        return Reply(503, b"busy") if n in broken else reply(answers[body["messages"][1]["content"]])

    with endpoint(behaviour) as server:
        settings = openai(tmp_path, server.url, concurrency=1)
        made = synthesize(settings, storage)
        assert made["unanswered"] == 2 and made["pairs"] == made["asked"] - 2
        again = synthesize(settings, storage)
        assert again["unanswered"] == 0 and again["pairs"] == made["asked"]
        assert len(server.seen) == made["asked"] + 2
        more = settings.model_copy(
            update={"synthesize": settings.synthesize.model_copy(update={"pairs_per_recording": 5})}
        )
        answers |= answers_of(more, storage, tmp_path)
        grown = synthesize(more, storage)
        assert grown["pairs"] > again["pairs"] and len(server.seen) == grown["asked"] + 2
        with pytest.raises(UserError, match=r"with other inputs \(temperature\)"):
            cooler = settings.synthesize.model_copy(update={"temperature": 0.1})
            synthesize(settings.model_copy(update={"synthesize": cooler}), storage)


def test_rejects_have_their_reasons_and_their_answers(storage: Storage, tmp_path: Path):
    answers = answers_of(openai(tmp_path, "http://127.0.0.1:1/v1"), storage, tmp_path)
    bad = sorted(answers)[0]

    def behaviour(body: dict[str, Any], n: int) -> Reply:
        asked = body["messages"][1]["content"]
        return reply(answer("What is heard?", "Snoring.") if asked == bad else answers[asked])

    with endpoint(behaviour) as server:
        made = synthesize(openai(tmp_path, server.url, retries=1), storage)
    folder = made["output"].rpartition("/")[0]
    rejects = rows(storage, f"{folder}/rejects.jsonl")
    assert rejects and len(rejects) == made["rejected"] == made["asked"] - made["pairs"]
    assert all(row["reason"] and row["rule"] == "task" and len(row["answers"]) == 2 for row in rejects)
    figures = storage.read_json(f"{folder}/summary.json")["tasks"]
    assert figures["all"]["rejected"] == {"task": len(rejects)} and figures["all"]["retried"] == len(rejects)
    assert figures["all"]["tokens_in"] == made["tokens_in"] == 3 * len(server.seen)


def test_nothing_valid_is_an_error_that_says_where_the_rejects_are(storage: Storage, tmp_path: Path):
    says = r"no pair is valid of \d+ .*rejects.jsonl\); the first: the reply is not"
    with endpoint(lambda body, n: reply("I cannot do that.")) as server, pytest.raises(UserError, match=says):
        synthesize(openai(tmp_path, server.url, retries=0), storage)


def test_too_dear_is_refused_before_anything_is_asked(storage: Storage, tmp_path: Path):
    with endpoint(lambda body, n: reply("x")) as server:
        settings = openai(tmp_path, server.url, price_in=1.0, price_out=4.0, max_cost=0.001)
        with pytest.raises(UserError, match=r"max_cost = 0\.001: \d+ questions may cost"):
            synthesize(settings, storage)
    assert not server.seen


def test_an_endpoint_that_is_down_is_one_clear_line(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(completions, "FIRST_PAUSE_S", 0.005)
    with endpoint(lambda body, n: reply("x")) as server:
        gone = server.url
    with pytest.raises(UserError, match=r"synthesize: .* no answer to the first 3 questions: no connection"):
        synthesize(openai(tmp_path, gone), storage)


def test_the_labels_of_a_list_are_read_from_its_answers(storage: Storage, tmp_path: Path):
    settings = write_source(
        tmp_path / "synthesize-list",
        [
            pair("0.wav", task="Classification", response="The heart sound is abnormal."),
            pair("0.wav", task="Identification", response="A holosystolic murmur, no diastolic murmur."),
            pair("0.wav", task="Reasoning", response="Mitral regurgitation, since the murmur is holosystolic."),
            pair("1.wav", task="Classification", response="The heart sound is normal."),
            pair("2.wav", task="Classification", response="It cannot be told."),
            pair(["0.wav", "1.wav"], task="Comparison", response="Audio 1 shows wheezes, audio 2 is normal."),
            b"{",
        ],
    )
    found = read_labelled(settings, storage, tmp_path)
    assert [one.labels for one in found.recordings] == [
        {"status": "abnormal", "finding": "a holosystolic murmur", "diagnosis": "mitral regurgitation"},
        {"status": "normal", "finding": "clear S1 and S2 with silent intervals"},
    ]
    assert len(found.rejects) == 1 and found.split(found.recordings[0]) == "train"
    made = synthesize(settings, storage)
    assert made["pairs"] == made["asked"] > 5 and made["audio"] == settings.corpus.audio


def test_a_source_without_labels_is_refused(storage: Storage, tmp_path: Path):
    settings = write_source(tmp_path / "synthesize-bare", [pair("0.wav", response="It cannot be told.")])
    with pytest.raises(UserError, match="no recording has a label to write pairs from"):
        synthesize(settings, storage)


def test_tasks_that_no_label_answers_are_refused(storage: Storage, tmp_path: Path):
    settings = icbhi(tmp_path, 1, tasks=["Comparison"])
    with pytest.raises(UserError, match="no pair can be written: none of 1 recordings in train, val, test"):
        synthesize(settings, storage)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("synthesize.tasks=[Guessing]", "synthesize.tasks.0: input should be 'Identification', .*got 'Guessing'"),
        ("synthesize.tasks=[]", "synthesize.tasks: list should have at least 1"),
        ("synthesize.writer=gpt", "input should be 'template', 'openai' or 'local'"),
        ("synthesize.splits=[inference]", "synthesize.splits.0: input should be 'train', 'val' or 'test'"),
        ("synthesize.max_cost=3", "max_cost needs price_in and price_out"),
    ],
)
def test_wrong_settings_are_named(override: str, says: str):
    with pytest.raises(SettingsError, match=says):
        load_settings(overrides=[override], environ={})


def test_the_key_stays_in_the_environment(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WRITER_KEY", "k-secret-123")
    answers = answers_of(openai(tmp_path, "http://127.0.0.1:1/v1"), storage, tmp_path)
    with endpoint(lambda body, n: reply(answers[body["messages"][1]["content"]])) as server:
        made = synthesize(openai(tmp_path, server.url, key_variable="WRITER_KEY"), storage)
    assert {seen["headers"]["authorization"] for seen in server.seen} == {"Bearer k-secret-123"}
    folder = made["output"].rpartition("/")[0]
    assert all(b"k-secret" not in storage.read_bytes(uri) for uri in storage.list(folder))
    assert os.environ["WRITER_KEY"]
