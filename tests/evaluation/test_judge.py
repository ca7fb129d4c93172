"""The judge: its format, an endpoint that behaves badly (a real HTTP server), a local model, verdicts that are kept."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm import completions
from stetholm.completions import EndpointError
from stetholm.errors import UserError
from stetholm.evaluation.conditions import AUDIO, WITHHELD
from stetholm.evaluation.examples import Example
from stetholm.evaluation.judge import FormatError, Judge, Question, agreement, parse_verdict
from stetholm.evaluation.judging import judge_report
from stetholm.evaluation.scoring import score
from stetholm.evaluation.verdicts import Verdict
from stetholm.settings import JudgeSettings
from tests.endpoint import Reply, endpoint, reply
from tests.serving.tiny import save_tiny_llama

RIGHT = '{"reason": "same", "score": 9, "correct": true}'
WRONG = '{"reason": "other", "score": 1, "correct": false}'


def by_answer(body, n):
    """Right is what says "wheeze"."""
    return reply(RIGHT if "Answer to check: wheeze" in body["messages"][0]["content"] else WRONG)


def test_agreement_is_by_condition(storage):
    """Control rows that are always wrong, as everybody sees, say nothing of the judge on real answers."""
    examples = [Example(f"s{i}", (f"r{i}",), "Normal?", "The sound is normal.", "Report", "d") for i in range(4)]
    answers = ["The sound is normal.", "The sound is abnormal."] * 2
    both = {AUDIO: answers, WITHHELD: ["The sound is abnormal."] * 4}
    scored = score(examples, both, lambda ours, theirs: [0.0] * len(ours))
    for one in scored:  # the judge takes every answer with audio for right
        one.verdicts.update({WITHHELD: Verdict(False, 0.0), AUDIO: Verdict(True, 1.0)})
    found = judge_report(Judge(JudgeSettings(model="x", base_url="http://127.0.0.1:9/v1"), storage), scored)
    assert {name: one["rate"] for name, one in found["agreement"].items()} == {AUDIO: 0.5, WITHHELD: 1.0}
    assert list(found["agreement"]) == [AUDIO, WITHHELD]


def settings(url, **more):
    return JudgeSettings(base_url=url, model="gpt-test", **{"timeout_s": 5.0, "attempts": 2, **more})


def questions(*answers):
    return [Question("What is heard?", "Wheezes.", answer) for answer in answers]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(completions, "FIRST_PAUSE_S", 0.005)


@pytest.mark.parametrize(
    ("text", "correct", "score"),
    [
        (RIGHT, True, 0.9),
        ('```json\n{"correct": false}\n```', False, 0.0),
        ('I think {so}. {"correct": true, "reason": "a {brace}"} Done.', True, 1.0),
        ('{"thought": 1} {"correct": true, "score": 0}', True, 0.0),
    ],
)
def test_replies_in_the_format(text, correct, score):
    verdict = parse_verdict(text)
    assert (verdict.correct, verdict.score) == (correct, score)


@pytest.mark.parametrize(
    "text",
    ["", "Yes, correct.", '{"correct": "yes"}', '{"correct": 1}', '{"correct": true, "score": 11}', '{"correct": tr',
     '{"correct": true, "score": "9"}', '{"correct": true, "score": NaN}', "[" * 5000, '{"a":' * 3000],
)  # fmt: skip
def test_replies_that_are_not(text):
    with pytest.raises(FormatError):
        parse_verdict(text)


@given(st.text())
def test_no_text_breaks_the_reader(text):
    try:
        assert parse_verdict(text).correct in (True, False)
    except FormatError as error:
        assert str(error)


def test_scores_are_of_each_answer_and_none_is_asked_twice_even_by_another_process(storage):
    with endpoint(by_answer) as server:
        judge = Judge(settings(server.url), storage)
        scores = judge.scores(["What is heard?"] * 3, ["Wheezes."] * 3, ["wheeze", "nothing", "wheeze"])
        assert scores == [0.9, 0.1, 0.9]
        assert len(server.seen) == judge.replies == 2 and judge.prompt_tokens == 6
        again = Judge(settings(server.url), storage).verdicts(questions("nothing", "wheeze"))
        assert [one.correct for one in again] == [False, True] and len(server.seen) == 2
        assert server.seen[0]["body"]["temperature"] == 0.0
        # Another prompt is another judge.
        assert len(Judge(settings(server.url, temperature=0.5), storage).verdicts(questions("wheeze"))) == 1
        assert len(server.seen) == 3


def test_a_reply_out_of_format_is_asked_for_again_with_what_was_wrong(storage):
    with endpoint(lambda body, n: reply("It is fine." if len(body["messages"]) == 1 else RIGHT)) as server:
        [verdict] = Judge(settings(server.url), storage).verdicts(questions("a"))
    assert verdict.correct is True
    conversation = server.seen[1]["body"]["messages"]
    assert conversation[1] == {"role": "assistant", "content": "It is fine."}
    assert "no JSON object" in conversation[2]["content"]


def test_a_judge_that_never_keeps_to_the_format_leaves_answers_unjudged_with_the_reason(storage):
    with endpoint(lambda body, n: reply("No <b>idea</b>.")) as server:
        judge = Judge(settings(server.url, retries=1), storage)
        [verdict] = judge.verdicts(questions("a"))
        assert verdict.correct is verdict.score is None
        assert verdict.reason == "not in the format after 2 tries: No <b>idea</b>."
        assert judge.scores(["What is heard?"], ["Wheezes."], ["a"]) == [None]
        assert len(server.seen) == 2  # it was paid for, and is kept


def test_one_answer_that_gets_none_is_unjudged_and_asked_again_another_time(storage):
    broken = True

    def answer(body, n):
        return Reply(500, b"broken") if broken and "Answer to check: x" in str(body) else by_answer(body, n)

    with endpoint(answer) as server:
        chosen = settings(server.url, concurrency=1)
        first = Judge(chosen, storage).verdicts(questions("wheeze", "x", "no"))
        assert [one.correct for one in first] == [True, None, False] and "HTTP 500" in first[1].reason
        broken = False
        assert [one.correct for one in Judge(chosen, storage).verdicts(questions("x"))] == [False]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (Reply(429, b"slow down"), "HTTP 429 slow down"),
        (Reply(200, b"<html>login</html>", {"Content-Type": "text/html"}), "HTML where JSON should be"),
        (Reply(200, b"{", wait=2.0), "no answer within 0.5 s"),
        (Reply(401, b"no key"), "set the environment variable OPENAI_API_KEY"),
    ],
)
def test_an_endpoint_that_fails_is_one_line_and_what_it_said_before_is_kept(storage, bad, says):
    with endpoint(lambda body, n: by_answer(body, n) if n < 2 else bad) as server:
        chosen = settings(server.url, concurrency=1, timeout_s=0.5)
        asked = questions("wheeze", "b", "c", "d", "e", "f")
        with pytest.raises(EndpointError, match=says) as caught:
            Judge(chosen, storage).verdicts(asked)
        assert str(caught.value).startswith("evaluate.judge: http://127.0.0.1") and "\n" not in str(caught.value)
        told = len(server.seen)
        assert [one.correct for one in Judge(chosen, storage).verdicts(asked[:2])] == [True, False]
        assert len(server.seen) == told


def test_a_prompt_of_ones_own_must_hold_the_three_fields(storage, tmp_path):
    own = tmp_path / "prompt.txt"
    own.write_text("Q $instruction R $reference")
    with pytest.raises(UserError, match="must hold"):
        Judge(JudgeSettings(model="m", prompt=str(own)), storage)
    own.write_text("Q $instruction R $reference A $answer for $$1")
    judge = Judge(JudgeSettings(model="m", prompt=str(own)), storage)
    assert judge.messages(Question("q", "r", "$a"))[0]["content"] == "Q q R r A $a for $1"


def test_agreement_by_rate_and_kappa():
    judged = [True, True, False, False, None, True]
    labels = [True, False, False, False, True, None]
    found = agreement(judged, labels)
    assert (found["n"], found["rate"]) == (4, 0.75) and found["kappa"] == pytest.approx(0.5)
    assert found["judge_label"] == {"true_true": 1, "true_false": 1, "false_true": 0, "false_false": 2}
    assert agreement([True, True], [True, True])["kappa"] is None
    assert agreement([None], [True])["n"] == 0


def test_a_local_model_judges_in_actors_and_babble_is_unjudged(storage, ray_cluster, tmp_path):
    chosen = JudgeSettings(model=str(save_tiny_llama(tmp_path / "lm", max_position_embeddings=4096)),
                           max_new_tokens=16, retries=0)  # fmt: skip
    judge = Judge(chosen, storage)
    verdicts = judge.verdicts(questions("a", "b", "a"))
    assert [one.correct for one in verdicts] == [None] * 3
    assert all(one.reason.startswith("not in the format after 1 tries") for one in verdicts)
    assert json.dumps(judge.name) and "run locally" in judge.name


def test_a_local_model_that_is_not_there_is_named_with_its_setting(storage, ray_cluster, tmp_path):
    with pytest.raises(UserError, match=r"evaluate.judge.model: .*no such folder"):
        Judge(JudgeSettings(model=str(tmp_path / "none")), storage).verdicts(questions("a"))
