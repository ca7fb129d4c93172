"""Asking until every pair is valid or given up: a round asks each open question once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stetholm.corpus.synthesis.cost import require_budget
from stetholm.corpus.synthesis.plan import Planned
from stetholm.corpus.synthesis.prompts import Prompts, Turn
from stetholm.corpus.synthesis.store import Answer, AnswerStore, key_of
from stetholm.corpus.synthesis.validation import Draft, validate
from stetholm.corpus.synthesis.writers import Ask, Writer
from stetholm.progress import Progress
from stetholm.settings import SynthesizeSettings


@dataclass
class Case:
    """One planned pair on its way.

    Attributes:
        planned: what is asked for.
        turns: answers that were not valid, with the reasons.
        rules: that they broke.
        answers: all of them.
        draft: the valid pair, once there is one.
        refused: why the writer will not answer.
        unanswered: why no answer came, this time.
    """

    planned: Planned
    turns: list[Turn] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    draft: Draft | None = None
    refused: str | None = None
    unanswered: str | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be asked, however often one may."""
        return self.draft is not None or self.refused is not None or self.unanswered is not None

    def take(self, answer: Answer) -> None:
        """Judge an answer."""
        self.answers.append(answer)
        if answer.refused is not None:
            self.refused = answer.refused
            return
        found = validate(self.planned, answer.text)
        if isinstance(found, Draft):
            self.draft = found
        else:
            self.turns.append(Turn(answer.text, found.reason))
            self.rules.append(found.rule)


class Rounds:
    """All cases, one writer, and the store between them."""

    def __init__(
        self, plan: Sequence[Planned], writer: Writer, prompts: Prompts, store: AnswerStore, chosen: SynthesizeSettings
    ) -> None:
        self.cases = [Case(planned) for planned in plan]
        self._writer, self._prompts, self._store, self._chosen = writer, prompts, store, chosen
        self._sampling: dict[str, Any] = {
            "temperature": chosen.temperature,
            "max_new_tokens": chosen.max_new_tokens,
            "at": chosen.base_url if chosen.writer == "openai" else chosen.writer,
            "extra": chosen.extra,
        }

    def open_questions(self) -> list[Ask]:
        """What is to be asked now: answers that are in the store are judged first, at no cost."""
        asks = []
        for case in self.cases:
            while not case.settled and len(case.turns) <= self._chosen.retries:
                ask = self._ask(case)
                if ask.key not in self._store:
                    asks.append(ask)
                    break
                case.take(self._store[ask.key])
        return asks

    def _ask(self, case: Case) -> Ask:
        messages = self._prompts.messages(case.planned, case.turns)
        # The number tells a question apart from an earlier one with the same words: the answer may have been the same.
        key = key_of(self._writer.name, messages, pair=case.planned.name, turn=len(case.turns), **self._sampling)
        return Ask(key, case.planned, tuple(messages))

    def run(self) -> None:
        """Ask, and ask again with the reason told, until every case is valid or given up.

        Raises:
            UserError: the writer cannot be used, or ``synthesize.max_cost`` is spent. All answers are kept.
        """
        with Progress("synthesize", len(self.cases), "pairs") as progress:
            while asks := self.open_questions():
                done = len(self.cases) - len(asks)
                progress.update(done, valid=self._valid())
                unanswered = self._round(asks, done, progress)
                self._give_up(asks, unanswered)
            progress.update(len(self.cases), valid=self._valid())

    def _round(self, asks: Sequence[Ask], done: int, progress: Progress) -> dict[str, str]:
        got = 0

        def keep(answers: Sequence[Answer]) -> None:
            nonlocal got
            self._store.keep(answers)
            got += len(answers)
            progress.update(done + got, valid=self._valid(), tokens=sum(self._store.tokens))
            require_budget(self._store.tokens, self._chosen)

        return self._writer.write(asks, keep)

    def _give_up(self, asks: Sequence[Ask], unanswered: dict[str, str]) -> None:
        """Leave those alone that got no answer: the same command asks for them again."""
        names = {ask.planned.name: unanswered[ask.key] for ask in asks if ask.key in unanswered}
        for case in self.cases:
            case.unanswered = names.get(case.planned.name, case.unanswered)

    def _valid(self) -> int:
        return sum(case.draft is not None for case in self.cases)
