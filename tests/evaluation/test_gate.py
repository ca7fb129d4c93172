"""The gate: rules over evaluations, paired comparisons, the signed gate.json, and what deployment makes of it."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from stetholm.errors import UserError
from stetholm.evaluation.compare import compare, find_evaluation, read_evaluation, to_markdown
from stetholm.evaluation.conditions import AUDIO, UNTOUCHED, WITHHELD
from stetholm.evaluation.examples import Example
from stetholm.evaluation.gate import check_gate, judge_gate
from stetholm.evaluation.report import make_report
from stetholm.evaluation.scoring import Draws, score, to_table
from stetholm.evaluation.signoff import require_signed_off, sign_off, weights_sha256

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("Classification", "Report")
FEW = Draws(300, 0)


def examples(count: int) -> list[Example]:
    return [
        Example(f"s{i}", (f"r{i}",), "Normal?", f"The heart sound is {'ab' * (i % 2)}normal.", TASKS[i // 2 % 2], "d",
                patient=f"p{i}")
        for i in range(count)
    ]  # fmt: skip


def exact(predictions, references):
    return [float(p == r) for p, r in zip(predictions, references, strict=True)]


def evaluation(storage, uri, wrong=(), count=40, checkpoint="s3://stetholm/test-gate/model", **report):
    """A finished evaluation in which the answers at the places ``wrong`` are wrong; controls always say "normal"."""
    asked = examples(count)
    answers = ["The heart sound is abnormal, with a murmur." if i in wrong and not i % 2 else
               "The heart sound is normal." if i in wrong else one.response for i, one in enumerate(asked)]  # fmt: skip
    constant = ["The heart sound is normal."] * count
    scored = score(asked, {AUDIO: answers, WITHHELD: constant, UNTOUCHED: constant}, exact)
    found = {
        "checkpoint": checkpoint, "corpus": "s3://c", "corpus_sha256": "c0", "split": "test", "split_rows": count,
        "scorer": "exact", "judge": None, **make_report(scored, [AUDIO, WITHHELD, UNTOUCHED], FEW), **report,
    }  # fmt: skip
    table: pa.Table = to_table(scored, [AUDIO, WITHHELD, UNTOUCHED])
    storage.write_table(f"{uri}/predictions.parquet", table)
    storage.write_json(f"{uri}/report.json", found)
    return read_evaluation(uri, storage)


@pytest.fixture(scope="module")
def base(storage):
    return storage.join("test-gate")


@pytest.fixture(scope="module")
def good(storage, base):
    return evaluation(storage, f"{base}/good", wrong=(1,))


@pytest.fixture(scope="module")
def poor(storage, base):
    return evaluation(storage, f"{base}/poor", wrong=range(16))


def test_a_gate_passes_only_what_reaches_every_minimum(good):
    assert judge_gate(check_gate({"Classification": 0.9, "binary": 0.9, "overall": 0.97}), good)["passed"]
    failed = judge_gate(check_gate({"Report": 0.2, "Location": 0.1, "overall": 0.98}), good)
    assert not failed["passed"]
    assert [(check["name"], check["passed"]) for check in failed["checks"]] == [
        ("Report", True), ("Location", False), ("overall", False)
    ]  # fmt: skip


def test_the_margin_is_over_every_control_row(good, poor):
    verdict = judge_gate(check_gate({"margin": 0.3}), good, draws=FEW)
    assert [check["name"] for check in verdict["checks"]] == ["audio withheld", "language model untouched"]
    assert verdict["passed"] and verdict["checks"][0]["value"] == pytest.approx(0.475)
    low, high = verdict["checks"][0]["interval"]
    assert low < 0.475 < high
    assert not judge_gate(check_gate({"margin": 0.3}), poor, draws=FEW)["passed"]


def test_no_task_may_be_worse_than_that_of_the_served_model(good, poor):
    rules = check_gate({"serving": good.uri, "max_drop": 0.1})
    verdict = judge_gate(rules, poor, good, FEW)
    assert {check["name"] for check in verdict["checks"]} == set(TASKS) and not verdict["passed"]
    assert judge_gate(rules, good, poor, FEW)["passed"]
    assert judge_gate(check_gate({"serving": good.uri, "max_drop": 0.5}), poor, good, FEW)["passed"]


def test_figures_on_patients_that_were_trained_on_sign_nothing_off(storage, base):
    found = evaluation(storage, f"{base}/seen", lineage={"seen_patients": 2, "seen_recordings": 0})
    verdict = judge_gate(check_gate({"overall": 0.1}), found)
    assert not verdict["passed"] and [check["rule"] for check in verdict["checks"]] == ["minimum", "unseen"]


def test_what_may_have_been_trained_on_signs_nothing_off_unless_that_is_accepted(storage, base):
    lineage = {"seen_patients": 0, "seen_recordings": 0, "not_compared": ["s3://c has changed"]}
    found = evaluation(storage, f"{base}/gap", lineage=lineage)
    verdict = judge_gate(check_gate({"overall": 0.1}), found)
    assert not verdict["passed"] and (verdict["checks"][1]["rule"], verdict["checks"][1]["name"]) == (
        "lineage", "s3://c has changed",
    )  # fmt: skip
    assert judge_gate(check_gate({"overall": 0.1, "lineage": "any"}), found)["passed"]
    with pytest.raises(UserError, match=r"evaluate.gate.lineage: .*'some'"):
        check_gate({"lineage": "some"})


def test_figures_of_a_few_examples_sign_nothing_off(storage, base):
    found = evaluation(storage, f"{base}/few", count=8, split_rows=40)
    verdict = judge_gate(check_gate({"overall": 0.1}), found)
    assert not verdict["passed"] and verdict["checks"][1]["rule"] == "examples"
    assert verdict["checks"][1]["value"] == pytest.approx(0.2)
    assert judge_gate(check_gate({"overall": 0.1, "examples": 0.2}), found)["passed"]


def test_the_served_model_must_have_been_measured_on_the_same_examples(storage, base, good):
    few = evaluation(storage, f"{base}/served-few", count=8)
    rules = {"serving": few.uri, "max_drop": 0.5}
    verdict = judge_gate(check_gate(rules), good, few, FEW)
    assert [check["rule"] for check in verdict["checks"] if not check["passed"]] == ["common"]
    assert judge_gate(check_gate({**rules, "common": 0.2}), good, few, FEW)["passed"]


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ({"Repport": 0.5}, "'Repport' is no task; choose from Identification"),
        ({"Report": 50.0}, "between 0 and 1"),
        ({"Report": "s3://x"}, "between 0 and 1"),
        ({"margin": -0.1}, r"evaluate.gate.margin: .*greater than"),
        ({"max_drop": 0.1}, "serving and max_drop belong together"),
        ({"metric": "f1"}, "evaluate.gate.metric"),
    ],
)
def test_a_gate_that_cannot_be_checked_is_refused(gate, says):
    with pytest.raises(UserError, match=says):
        check_gate(gate)


def test_two_evaluations_side_by_side(good, poor):
    found = compare(good, poor, FEW, "evaluate.compare_to")
    overall = found["tasks"]["Overall"]["label_accuracy"]
    assert overall["difference"] == pytest.approx(15 / 40)
    assert overall["interval"][0] > 0.2 and found["n"] == 40
    assert found["left_out"] == {"clinical_accuracy": "not judged in both"}
    back = compare(poor, good, FEW, "x")["tasks"]["Overall"]["label_accuracy"]
    assert back["difference"] == -overall["difference"]
    text = to_markdown(found)
    assert "97.5 / 60.0 / +37.5" in text and "Left out: clinical accuracy" in text


def test_equal_evaluations_differ_by_nothing(good):
    overall = compare(good, good, FEW, "x")["tasks"]["Overall"]["bertscore_f1"]
    assert overall["difference"] == 0 and overall["interval"] == [0, 0]


def test_figures_of_other_backbones_are_not_compared(storage, base, good):
    other = evaluation(storage, f"{base}/other", scorer="roberta-large")
    assert "other backbones" in compare(good, other, FEW, "x")["left_out"]["bertscore_f1"]


def test_evaluations_of_other_splits_have_nothing_to_compare(storage, base, good):
    other = read_evaluation(evaluation(storage, f"{base}/split").uri, storage)
    strangers = type(other)(other.uri, other.report, {f"x{key}": row for key, row in other.rows.items()})
    with pytest.raises(UserError, match="no example in common"):
        compare(good, strangers, FEW, "evaluate.compare_to")


def test_an_evaluation_is_found_by_its_checkpoint(storage, base, good):
    run = storage.join("runs", "test-gate-run", "evaluate", "result.json")
    storage.write_json(run, {"output": good.uri, "inputs": {"checkpoint": f"{base}/evaluated"}})
    assert find_evaluation(f"{base}/evaluated/", storage, "x") == good.uri
    assert find_evaluation(good.uri, storage, "x") == good.uri
    with pytest.raises(UserError, match=r"evaluate.compare_to: there is no evaluation at .*stranger"):
        find_evaluation(f"{base}/stranger", storage, "evaluate.compare_to")
    with pytest.raises(UserError, match="no s3:// URI"):
        find_evaluation("/tmp/x", storage, "evaluate.compare_to")


# --- gate.json ---


def signed(storage, uri, passed=True):
    """A checkpoint with weights, signed off."""
    storage.write_bytes(f"{uri}/model.safetensors", b"weights of " + uri.encode())
    storage.write_json(f"{uri}/config.json", {})
    found = evaluation(storage, f"{uri}-evaluation", wrong=() if passed else range(30), checkpoint=uri)
    verdict = judge_gate(check_gate({"overall": 0.9}), found)
    return sign_off(verdict, found.report, found.uri, "s3://c", "c0", storage)


def test_the_signed_gate_says_all_of_what_it_is_about(storage, base):
    uri = f"{base}/signed"
    written = signed(storage, uri)
    assert written == storage.read_json(f"{uri}/gate.json") == storage.read_json(f"{uri}-evaluation/gate.json")
    assert written["weights_sha256"] == weights_sha256(uri, storage) and len(written["weights_sha256"]) == 64
    assert written["checkpoint"] == uri and written["evaluation"] == f"{uri}-evaluation"
    assert written["corpus_sha256"] == "c0" and written["date"].startswith("20")
    [check] = written["checks"]
    assert (check["rule"], check["name"], check["bound"], check["passed"]) == ("minimum", "overall", 0.9, True)
    assert require_signed_off(uri, storage, "required").startswith("gate: passed on 20")
    stamps = storage.stamps(uri)
    assert signed(storage, uri) == written and storage.stamps(uri)[f"{uri}/gate.json"] == stamps[f"{uri}/gate.json"]


def test_a_gate_that_was_not_passed_stops_deployment_unless_forced(storage, base):
    uri = f"{base}/failed"
    assert not signed(storage, uri, passed=False)["passed"]
    for asked in ("if-there", "required"):
        with pytest.raises(UserError, match=r"has not passed its gate \(minimum overall"):
            require_signed_off(uri, storage, asked)
    assert "not asked" in require_signed_off(uri, storage, "ignore")


def test_a_gate_of_other_weights_stops_deployment(storage, base):
    uri = f"{base}/changed"
    signed(storage, uri)
    storage.write_bytes(f"{uri}/model.safetensors", b"trained on")
    with pytest.raises(UserError, match="signed off for other weights"):
        require_signed_off(uri, storage, "if-there")
    # Nor does a copy of somebody else's gate help.
    storage.write_bytes(f"{base}/copied/model.safetensors", b"others")
    storage.write_json(f"{base}/copied/gate.json", storage.read_json(f"{base}/signed/gate.json"))
    with pytest.raises(UserError, match="other weights"):
        require_signed_off(f"{base}/copied", storage, "if-there")


def test_a_gate_whose_rules_failed_does_not_pass_by_saying_so(storage, base):
    uri = f"{base}/edited"
    storage.write_json(f"{uri}/gate.json", {**signed(storage, uri, passed=False), "passed": True})
    with pytest.raises(UserError, match="has not passed"):
        require_signed_off(uri, storage, "if-there")


@pytest.mark.parametrize("text", ["[]", "{}", '{"version": 9, "checks": [], "passed": true, "weights_sha256": "x"}'])
def test_what_is_no_gate_is_refused(storage, base, text):
    uri = f"{base}/odd"
    storage.write_bytes(f"{uri}/model.safetensors", b"w")
    storage.write_text(f"{uri}/gate.json", text)
    with pytest.raises(UserError, match=r"is not a gate.json of this version"):
        require_signed_off(uri, storage, "if-there")


def test_without_a_gate_it_depends_on_what_is_asked(storage, base):
    uri = f"{base}/bare"
    storage.write_bytes(f"{uri}/model.safetensors", b"w")
    assert "nobody has signed it off" in require_signed_off(uri, storage, "if-there")
    with pytest.raises(UserError, match=r"no gate.json beside .*evaluate.gate first"):
        require_signed_off(uri, storage, "required")


def test_a_folder_of_this_machine_is_held_to_its_gate(storage, base, tmp_path):
    for name, passed in (("good", True), ("bad", False)):
        signed(storage, f"{base}/to-{name}", passed)
        storage.download_dir(f"{base}/to-{name}", tmp_path / name)
        assert weights_sha256(str(tmp_path / name), storage) == weights_sha256(f"{base}/to-{name}", storage)
    assert require_signed_off(f"{tmp_path}/good", storage, "required").startswith("gate: passed on 20")
    for asked in ("if-there", "required"):
        with pytest.raises(UserError, match="has not passed its gate"):
            require_signed_off(f"{tmp_path}/bad/", storage, asked)
    (tmp_path / "good" / "model.safetensors").write_bytes(b"trained on")
    with pytest.raises(UserError, match="other weights"):
        require_signed_off(f"{tmp_path}/good", storage, "if-there")
    (tmp_path / "good" / "gate.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        require_signed_off(f"{tmp_path}/good", storage, "if-there")
    (tmp_path / "good" / "gate.json").write_text("null")
    with pytest.raises(UserError, match="is not a gate"):
        require_signed_off(f"{tmp_path}/good", storage, "if-there")
    (tmp_path / "good" / "gate.json").unlink()
    assert "nobody has signed it off" in require_signed_off(f"{tmp_path}/good", storage, "if-there")


def test_weights_in_several_files_are_hashed_together(storage, base):
    uri = f"{base}/sharded"
    for number in (1, 2):
        storage.write_bytes(f"{uri}/model-{number}.safetensors", b"w%d" % number)
    before = weights_sha256(uri, storage)
    storage.write_bytes(f"{uri}/training_state/x.safetensors", b"not weights that are served")
    assert weights_sha256(uri, storage) == before
    storage.write_bytes(f"{uri}/model-2.safetensors", b"changed")
    assert weights_sha256(uri, storage) != before
    with pytest.raises(UserError, match="no weights"):
        weights_sha256(f"{base}/nothing", storage)


def test_the_deploy_command_refuses_with_status_2_before_ray_starts(storage, base):
    uri = f"{base}/failed-too"
    signed(storage, uri, passed=False)
    done = subprocess.run(
        [sys.executable, "-m", "serve.deploy", "--set", f"serve.model={uri}", "--set", "serve.port=18997"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and "has not passed its gate" in done.stderr.strip().splitlines()[-1]
    assert json.loads(storage.read_text(f"{uri}/gate.json"))["passed"] is False
