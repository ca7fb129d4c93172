"""The evaluation job from a corpus and a checkpoint in storage to the table."""

import io
import json

import pytest
from PIL import Image

from stetholm import runs
from stetholm.corpus.manifest import Manifest
from stetholm.errors import UserError
from stetholm.evaluation import generation
from stetholm.evaluation.evaluate import evaluate
from stetholm.evaluation.examples import read_examples, read_rows
from stetholm.settings import SettingsError, load_settings
from tests.endpoint import endpoint, reply
from tests.evaluation.corpus import make_checkpoint, make_corpus
from tests.serving.tiny import save_tiny, save_tiny_llama


@pytest.fixture(scope="module")
def overrides(storage, tmp_path_factory):
    base = storage.join("test-evaluate")
    checkpoint = make_checkpoint(storage, f"{base}/checkpoint", tmp_path_factory.mktemp("tiny"))
    return [
        f"model.init_from={checkpoint}",
        f"corpus.uri={make_corpus(storage, f'{base}/corpus')}",
        "evaluate.max_new_tokens=6",
        "evaluate.batch_size=4",
    ]


def settings(overrides, *more):
    return load_settings(overrides=[*overrides, *more], environ={})


def test_examples_are_read_without_audio_and_rows_by_id(storage, overrides):
    uri = settings(overrides).corpus.uri
    examples = read_examples(storage, uri, "test")
    assert len(examples) == 9 and examples[-1].recording_ids == ("r4", "r5")
    wanted = {examples[2].sample_id, examples[7].sample_id}
    found = list(read_rows(storage, uri, "test", ["sample_id", "audio"], wanted))
    assert {row["sample_id"] for row in found} == wanted and all(row["audio"][0][:4] == b"fLaC" for row in found)


@pytest.fixture(scope="module")
def first(storage, overrides, ray_cluster):
    """Settings and result of an evaluation with a gate that is not passed."""
    chosen = settings(overrides, "run.name=eval-once", "evaluate.gate={overall: 0.0, Report: 0.1}")
    return chosen, evaluate(chosen, storage)


def test_a_run_is_evaluated_once_and_the_same_command_shows_its_table_again(
    storage, overrides, first, capsys, monkeypatch
):
    chosen, result = first
    assert result["output"] == runs.run_uri(chosen, storage, "evaluate")
    assert set(result["tasks"]) == {"Classification", "Identification", "Comparison"}
    assert result["overall"]["n"] == 9 and result["overall"]["controls"]["shuffled"]["n"] == 9
    assert set(result["binary_accuracy"]) == {"audio", "withheld", "shuffled"}
    assert not result["gate"]["passed"] and result["gate"]["failed"][0] == "Report"
    assert "does not say what it was trained on" in result["gate"]["failed"][1]  # it has no lineage.json
    json.dumps(result)

    table = storage.read_table(f"{result['output']}/predictions.parquet")
    assert table.num_rows == 9 and table["prediction"].null_count == 0
    # What is withheld is withheld: the answer depends on the instruction alone.
    answers = {}
    for row in table.to_pylist():
        answers.setdefault(row["instruction"], set()).add(row["prediction_withheld"])
    assert all(len(texts) == 1 for texts in answers.values())
    report = storage.read_json(f"{result['output']}/report.json")
    assert report["scorer"].startswith("all-MiniLM-L6-v2") and report["datasets"].keys() == {"heart-test"}
    assert all(one["conditions"].keys() == {"audio", "withheld", "shuffled"} for one in report["cells"])
    whole = storage.read_text(f"{result['output']}/report.md")
    assert "theirs: StethoLM" in whole and "Not comparable" in whole and "66.4" in whole
    picture = Image.open(io.BytesIO(storage.read_bytes(f"{result['output']}/report.png")))
    assert picture.width == 1200 and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    short = storage.read_text(f"{result['output']}/table.md")
    assert "Overall, audio withheld" in short and "theirs: StethoLM" in short
    assert report["decoding"] == {"temperature": 0.0, "max_new_tokens": 6, "num_beams": 1, "length_penalty": 1.0}
    assert not [uri for uri in storage.list(result["output"]) if "/answers-" in uri or "/untouched-" in uri]

    monkeypatch.setattr(generation, "load_engine", None)  # nothing may be generated again
    again = evaluate(chosen, storage)
    assert again["overall"] == result["overall"] and "Comparison" in capsys.readouterr().out
    with pytest.raises(UserError, match="other inputs"):
        evaluate(settings(overrides, "run.name=eval-once", "evaluate.max_new_tokens=5"), storage)


def test_answers_of_an_interrupted_job_are_not_made_again(storage, ray_cluster):
    store = generation.AnswerStore(storage, storage.join("test-evaluate", "answers"))
    asked = [generation.Question(f"q{i}", None, (), (generation.Sampling(),)) for i in range(3)]
    store.add({one.key: [f"answer to {one.instruction}"] for one in asked})
    store.flush()
    pool = generation.Pool("s3://nowhere/at-all", storage)
    fresh = generation.AnswerStore(storage, storage.join("test-evaluate", "answers"))
    with generation.Progress("test", 3, stream=io.StringIO()) as progress:
        answers = generation.answer_all(asked, {}, pool, fresh, progress)
    assert answers.made == 0 and answers.of(asked[1]) == ["answer to q1"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["evaluate.split=test2"], r"test2.*test \(9\), train \(9\)"),
        (["evaluate.split=val"], "no rows in split 'val'"),
        (["evaluate.judge.base_url=http://127.0.0.1:9/v1"], "evaluate.judge: a judge needs a model"),
        (["evaluate.judge=x", "evaluate.judge.prompt=./none.txt"], r"evaluate.judge.prompt: ./none.txt cannot be read"),
        (["evaluate.tasks=[Location]"], "has no Location; it has: Classification, Comparison, Identification"),
        (["evaluate.gate={margin: 0.1}", "evaluate.controls=false"], "needs the control rows"),
        (["evaluate.gate={metric: clinical_accuracy, overall: 0.1}"], "needs a judge"),
        (["evaluate.compare_to=s3://stetholm/test-evaluate/none"], "no evaluation at s3://stetholm/test-evaluate/none"),
        (["evaluate.gate={serving: 's3://stetholm/none', max_drop: 0.1}"], "evaluate.gate.serving: there is no"),
        (["evaluate.gate={Nothing: 0.5}"], "Nothing"),
        (["evaluate.scorer=./none"], "scorer"),
        (["corpus.uri=s3://stetholm/test-evaluate/none"], "no corpus"),
    ],
)
def test_settings_that_cannot_be_evaluated_are_refused(storage, overrides, ray_cluster, more, says):
    with pytest.raises(UserError, match=says):
        evaluate(settings(overrides, "run.name=eval-refused", *more), storage)


def test_answers_by_beam_search_are_another_evaluation(storage, overrides, first):
    more = ["run.name=eval-beams", "evaluate.num_beams=3", "evaluate.length_penalty=0.5", "evaluate.controls=false"]
    found = evaluate(settings(overrides, *more), storage)
    assert storage.read_json(f"{found['output']}/report.json")["decoding"]["num_beams"] == 3
    with pytest.raises(UserError, match=r"other inputs \(.*length_penalty, num_beams"):
        evaluate(settings(overrides, "run.name=eval-once", *more[1:]), storage)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["evaluate.num_beams=5", "evaluate.engine=vllm"], "num_beams 5 needs engine transformers"),
        (["evaluate.length_penalty=0.5"], "length_penalty 0.5 is a beam search's"),
    ],
)
def test_decoding_that_contradicts_is_refused_at_once(overrides, more, says):
    with pytest.raises(SettingsError, match=says):
        settings(overrides, *more)


def test_a_run_without_a_checkpoint_says_what_to_do(storage, overrides):
    with pytest.raises(UserError, match="no finished checkpoint"):
        evaluate(settings(overrides[1:], "run.name=eval-empty"), storage)


def test_a_checkpoint_that_is_not_there_is_named_before_anything_starts(storage, overrides):
    nowhere = storage.join("test-evaluate", "nowhere")
    with pytest.raises(UserError, match=r"no checkpoint at .*nowhere"):
        evaluate(settings(overrides, f"model.init_from={nowhere}"), storage)


@pytest.fixture(scope="module")
def with_language_model(storage, overrides, tmp_path_factory):
    """A checkpoint that names its language model, trained on its corpus's own train split."""
    base = storage.join("test-evaluate")
    folder = save_tiny(tmp_path_factory.mktemp("named"))
    language_model = save_tiny_llama(tmp_path_factory.mktemp("lm"), max_position_embeddings=2048)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "language_model": str(language_model)}))
    corpus = f"{base}/corpus"
    sha256 = Manifest.load(storage, corpus).sha256
    known = {"stage": "sft", "corpus": corpus, "corpus_sha256": sha256, "parent": None, "settings": {}}
    (folder / "lineage.json").write_text(json.dumps(known))
    storage.upload_dir(folder, f"{base}/named")
    return f"{base}/named"


def test_a_judged_evaluation_with_all_control_rows_a_comparison_and_a_gate(
    storage, overrides, with_language_model, first, capsys
):
    def answer(body, n):
        correct = "true" if n % 2 else "false"
        return reply("hmm" if "Compare" in str(body) else f'{{"correct": {correct}, "score": 5}}')

    with endpoint(answer) as server:
        chosen = settings(
            overrides, f"model.init_from={with_language_model}", "run.name=eval-judged", "evaluate.judge=gpt-test",
            f"evaluate.judge.base_url={server.url}", "evaluate.judge.retries=1",
            f"evaluate.compare_to={settings(overrides).model.init_from}",
            "evaluate.gate={overall: 0.0, margin: 0.0, metric: bertscore_f1}",
        )  # fmt: skip
        result = evaluate(chosen, storage)
    assert set(result["overall"]["controls"]) == {"withheld", "shuffled", "untouched"}
    assert result["judge"]["name"].startswith("gpt-test at 127.0.0.1") and result["judge"]["unjudged"] == 4
    agreed = result["judge"]["agreement"]
    assert list(agreed) == ["audio", "withheld", "shuffled", "untouched"] and agreed["audio"]["n"] == 8
    assert result["overall"]["judged"] == 8 and result["overall"]["unjudged"] == 1
    assert result["comparison"]["n"] == 9 and result["gate"]["output"] == f"{with_language_model}/gate.json"
    gate = storage.read_json(f"{with_language_model}/gate.json")
    assert [check["rule"] for check in gate["checks"]] == ["minimum", *["margin"] * 3]
    assert gate["corpus_sha256"] and gate["evaluation"] == result["output"]
    report = storage.read_json(f"{result['output']}/report.json")
    assert report["lineage"]["seen_patients"] == 0 and len(report["lineage"]["corpora"]) == 1
    text = storage.read_text(f"{result['output']}/report.md")
    assert "not in the format after 2 tries: hmm" in text and "language model untouched" in text
    assert "comparison" not in report and "difference" in storage.read_text(f"{result['output']}/comparison.md")
    assert "untouched" in capsys.readouterr().out


def test_a_checkpoint_that_was_trained_on_the_split_is_refused(storage, overrides, with_language_model, ray_cluster):
    chosen = [f"model.init_from={with_language_model}", "run.name=eval-seen", "evaluate.split=train"]
    with pytest.raises(UserError, match=r"was trained on 4 patients and 4 recordings of split 'train'"):
        evaluate(settings(overrides, *chosen), storage)
