"""A language model that says whether an answer is clinically right: the table's "clinical accuracy", and a scorer.

    judge = Judge(settings.evaluate.judge, storage)
    judge.scores(instructions, references, answers)    # 0 to 1, None where the judge gave no usable verdict

The judge and prompt of the paper are not public, so its clinical accuracies cannot be compared with ours. The prompt
is a file. A reply that is not in the format is asked for again, with what was wrong; after that the answer is
unjudged, and the reason is kept. Verdicts lie on storage under a name made of the judge (model, endpoint, prompt) and
what was judged: no job asks, or pays, for one a second time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

from stetholm.completions import Completions, Message, NotAnswered, for_all
from stetholm.errors import UserError
from stetholm.evaluation.verdicts import Verdict, VerdictStore
from stetholm.progress import Progress
from stetholm.runs import digest
from stetholm.settings import JudgeSettings
from stetholm.storage import Storage

PROMPT = "judge_prompt.txt"
FIELDS = {"instruction", "reference", "answer"}
TOP_SCORE = 10.0
MOST_CHARS = 20_000
"""Of a reply that are looked through."""
AGAIN = (
    "That is not in the format: $reason. Reply with one JSON object and nothing else: "
    '{"reason": "<one short sentence>", "score": <0 to 10>, "correct": <true or false>}'
)

__all__ = ["Judge", "Question", "Verdict", "agreement", "parse_verdict"]


class FormatError(ValueError):
    """A judge's reply that cannot be read; the message says why."""


@dataclass(frozen=True)
class Question:
    """What is judged."""

    instruction: str
    reference: str
    answer: str

    @property
    def key(self) -> str:
        """32 hex digits of the content."""
        text = json.dumps([self.instruction, self.reference, self.answer])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def parse_verdict(text: str) -> Verdict:
    """Read a judge's reply: its first JSON object that says ``correct``; text around it (thinking) is let pass.

    Raises:
        FormatError: there is none, ``correct`` is not true or false, or ``score`` is not a number from 0 to 10.
    """
    found = _first_object(text)
    correct, score = found.get("correct"), found.get("score")
    if not isinstance(correct, bool):
        raise FormatError(f'"correct" must be true or false, not {json.dumps(correct)[:40]}')
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise FormatError(f'"score" must be a number, not {json.dumps(score)[:40]}')
    if score is not None and not 0 <= score <= TOP_SCORE:
        raise FormatError(f'"score" must be from 0 to 10, not {score}')
    graded = float(correct) if score is None else score / TOP_SCORE
    return Verdict(correct, graded, " ".join(str(found.get("reason", "")).split())[:300])


def _first_object(text: str) -> dict[str, Any]:
    text = text[:MOST_CHARS]
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and "correct" in found:
            return found
        start = text.find("{", start + 1)
    raise FormatError('no JSON object with "correct" in the reply')


class Judge:
    """Asks an endpoint or a local model, what it has not asked before."""

    def __init__(
        self, settings: JudgeSettings, storage: Storage, *, use_gpu: bool = False, setting: str = "evaluate.judge"
    ) -> None:
        """Read the prompt; nothing is asked yet.

        Args:
            settings: the judge's; ``model`` must be set.
            storage: where verdicts are kept.
            use_gpu: for a local model.
            setting: where the settings stand in the tree, for messages.

        Raises:
            UserError: no model, or a prompt file that is missing or lacks a field.
        """
        if not settings.model:
            raise UserError(f"{setting}: a judge needs a model")
        self.settings, self.setting, self.use_gpu = settings, setting, use_gpu
        self.prompt = read_prompt(settings.prompt, f"{setting}.prompt")
        self.name = judge_name(settings, self.prompt)
        self.replies = self.prompt_tokens = self.completion_tokens = 0
        """Of an endpoint, in this process: what was paid for."""
        self._store = VerdictStore(storage, storage.join("verdicts", digest(identity(settings, self.prompt))))

    def scores(
        self, instructions: Sequence[str], references: Sequence[str], answers: Sequence[str]
    ) -> list[float | None]:
        """How much of each reference is right in each answer, 0 to 1; None where there is no usable verdict."""
        triples = zip(instructions, references, answers, strict=True)
        return [verdict.score for verdict in self.verdicts([Question(*one) for one in triples])]

    def verdicts(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict for each question; those alike are asked once.

        Raises:
            EndpointError: the endpoint cannot be used. What it has said so far is kept.
        """
        found = self._store.load()
        todo = list({one.key: one for one in questions if one.key not in found}.values())
        if todo:
            with Progress(f"judge {self.settings.model}", len(todo), "verdicts") as progress:
                found |= self._ask(todo, progress)
        return [found[one.key] for one in questions]

    def _ask(self, todo: Sequence[Question], progress: Progress) -> dict[str, Verdict]:
        found: dict[str, Verdict] = {}

        def done(place: int, verdict: Verdict | NotAnswered) -> None:
            # What the endpoint's faults have cost us is not kept: it may answer another time.
            kept = not isinstance(verdict, NotAnswered) or verdict.refused
            if isinstance(verdict, NotAnswered):
                verdict = Verdict(None, None, f"no answer: {verdict}")
            if kept:
                self._store.add({todo[place].key: verdict})
            found[todo[place].key] = verdict
            unjudged = sum(one.correct is None for one in found.values())
            progress.update(len(found), **({"unjudged": str(unjudged)} if unjudged else {}))

        try:
            if self.settings.base_url:
                for_all(self.settings, todo, self._over_http, done, self.setting)
            else:
                self._locally(todo, done)
        finally:
            self._store.flush()
        return found

    async def _over_http(self, ask: Completions, question: Question) -> Verdict:
        """One question, asked again while the reply is not in the format."""
        messages, chosen = self.messages(question), self.settings
        for _ in range(1 + chosen.retries):
            reply = await ask(messages, max_tokens=chosen.max_new_tokens, temperature=chosen.temperature)
            self.replies += 1
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
            verdict = self.read(messages, reply.text)
            if verdict is not None:
                return verdict
        return unjudged(messages)

    def _locally(self, todo: Sequence[Question], done: Callable[[int, Verdict], None]) -> None:
        """Rounds over all questions that have no verdict yet, in actors that hold the model."""
        from stetholm.evaluation.chat import ChatPool, chat  # here, as it brings torch and Ray

        chosen = self.settings
        pool = ChatPool(
            str(chosen.model),
            chosen.max_new_tokens,
            chosen.temperature,
            chosen.batch_size,
            self.use_gpu,
            f"{self.setting}.model",
        )
        open_ = {place: self.messages(question) for place, question in enumerate(todo)}
        for turn in range(1 + chosen.retries):
            for place, text in chat(dict(open_), pool, seed=turn):
                verdict = self.read(open_[place], text)
                if verdict is not None:
                    del open_[place]
                    done(place, verdict)
        for place, messages in open_.items():
            done(place, unjudged(messages))

    def messages(self, question: Question) -> list[Message]:
        """The conversation that asks for a verdict."""
        return [{"role": "user", "content": Template(self.prompt).substitute(vars(question))}]

    def read(self, messages: list[Message], text: str) -> Verdict | None:
        """The verdict in a reply; None, with ``messages`` extended by what was wrong, where it is not in the format."""
        try:
            return parse_verdict(text)
        except FormatError as error:
            again = Template(AGAIN).substitute(reason=error)
            messages += [{"role": "assistant", "content": text[:2000]}, {"role": "user", "content": again}]
            return None


def unjudged(messages: Sequence[Message]) -> Verdict:
    """After the last try: what the last reply was."""
    last = " ".join(messages[-2]["content"].split())[:160]
    return Verdict(None, None, f"not in the format after {len(messages) // 2} tries: {last}")


def read_prompt(path: str | None, setting: str) -> str:
    """The package's prompt, or a file of the user's.

    Raises:
        UserError: there is no such file, or it does not say where instruction, reference and answer go.
    """
    if path is None:
        return files(__package__).joinpath(PROMPT).read_text("utf-8").strip()
    try:
        text = Path(path).expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{setting}: {path} cannot be read: {error}") from error
    template = Template(text)
    if not template.is_valid() or set(template.get_identifiers()) != FIELDS:
        raise UserError(f"{setting}: {path} must hold $instruction, $reference and $answer, and no other $ (write $$)")
    return text


def identity(settings: JudgeSettings, prompt: str) -> dict[str, Any]:
    """All that a verdict depends on besides what is judged."""
    chosen = settings.model_dump(include={"base_url", "model", "max_new_tokens", "temperature", "retries", "extra"})
    return {**chosen, "prompt": hashlib.sha256((prompt + AGAIN).encode()).hexdigest()}


def judge_name(settings: JudgeSettings, prompt: str) -> str:
    """Who judges by which prompt, for tables."""
    where = f"at {urlsplit(settings.base_url).netloc}" if settings.base_url else "run locally"
    return f"{settings.model} {where}, prompt {hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


def agreement(verdicts: Sequence[bool | None], labels: Sequence[bool | None]) -> dict[str, Any]:
    """How often judge and ontology agree that an answer is right, over those that both have judged.

    Returns:
        ``n``, ``rate``, Cohen's ``kappa`` (1960; None where one of the two always says the same) and, by
        ``judge_label``, how often each pair of verdicts came, e.g. ``{"true_false": 3}``.
    """
    from sklearn.metrics import cohen_kappa_score

    both = [(a, b) for a, b in zip(verdicts, labels, strict=True) if a is not None and b is not None]
    if not both:
        return {"n": 0, "rate": None, "kappa": None, "judge_label": {}}
    ours, theirs = [list(column) for column in zip(*both, strict=True)]
    varied = len(set(ours)) > 1 and len(set(theirs)) > 1
    kappa = float(cohen_kappa_score(ours, theirs)) if varied else math.nan
    pairs: Mapping[str, int] = {
        f"{a}_{b}".lower(): sum(pair == (a, b) for pair in both) for a in (True, False) for b in (True, False)
    }
    return {
        "n": len(both),
        "rate": sum(a == b for a, b in both) / len(both),
        "kappa": None if math.isnan(kappa) else kappa,
        "judge_label": pairs,
    }
