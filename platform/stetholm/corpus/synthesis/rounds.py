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
from stetholm.errors import UserError
from stetholm.progress import Progress
from stetholm.settings import SynthesizeSettings

HOPELESS = 100
"""Answers of one start of which at least one must be valid."""


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
        self.valid = self._made = 0
        self._writer, self._prompts, self._store, self._chosen = writer, prompts, store, chosen
        self._sampling: dict[str, Any] = {
            "temperature": chosen.temperature,
            "max_new_tokens": chosen.max_new_tokens,
            "kind": chosen.writer,  # not its address: a server that has moved has the same model
            "extra": chosen.extra,
        }

    def open_questions(self, progress: Progress | None = None) -> list[Ask]:
        """What is to be asked now: answers that are in the store are judged first, at no cost.

        Args:
            progress: told how many pairs are settled.
        """
        self._asked: dict[str, Case] = {}
        asks = []
        for number, case in enumerate(self.cases, start=1):
            while not case.settled and len(case.turns) <= self._chosen.retries:
                ask = self._ask(case)
                if ask.key not in self._store:
                    asks.append(ask)
                    self._asked[ask.key] = case
                    break
                self._take(case, self._store[ask.key])
            if progress is not None:
                progress.update(number - len(asks), valid=self.valid)
        return asks

    def _ask(self, case: Case) -> Ask:
        messages = self._prompts.messages(case.planned, case.turns)
        # The number tells a question apart from an earlier one with the same words: the answer may have been the same.
        key = key_of(self._writer.name, messages, pair=case.planned.name, turn=len(case.turns), **self._sampling)
        return Ask(key, case.planned, tuple(messages))

    def _take(self, case: Case, answer: Answer) -> None:
        case.take(answer)
        self.valid += case.draft is not None

    def run(self) -> None:
        """Ask, and ask again with the reason told, until every case is valid or given up.

        Raises:
            UserError: the writer cannot be used, ``synthesize.max_cost`` is spent, or nothing that it answers is valid.
                All answers are kept.
        """
        with Progress("synthesize", len(self.cases), "pairs") as progress:
            while asks := self.open_questions(progress):
                unanswered = self._round(asks, progress)
                for key, reason in unanswered.items():  # the same command asks for them again
                    self._asked[key].unanswered = reason
            progress.update(len(self.cases), valid=self.valid)

    def _round(self, asks: Sequence[Ask], progress: Progress) -> dict[str, str]:
        done = len(self.cases) - len(asks)

        def keep(answers: Sequence[Answer]) -> None:
            nonlocal done
            self._store.keep(answers)
            for answer in answers:
                self._take(self._asked[answer.key], answer)
            done += len(answers)
            self._made += len(answers)
            progress.update(done, valid=self.valid, tokens=sum(self._store.tokens))
            require_budget(self._store.tokens, self._chosen)
            self._require_hope(answers)

        return self._writer.write(asks, keep)

    def _require_hope(self, answers: Sequence[Answer]) -> None:
        """Stop paying a writer that cannot do it."""
        if self.valid or self._made < HOPELESS:
            return
        turns = self._asked[answers[-1].key].turns
        raise UserError(
            f"none of {self._made} answers of {self._writer.name} is valid (the last one: "
            f"{turns[-1].reason if turns else answers[-1].refused}): change synthesize.model or synthesize.prompts, or "
            "start again to go on all the same"
        )
