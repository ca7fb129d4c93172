"""What a job may cost, before it starts and while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stetholm.completions import Completion
from stetholm.errors import UserError
from stetholm.settings import SynthesizeSettings

CHARS_PER_TOKEN = 3.5
"""English prompts have 4 to 5 characters a token in the usual vocabularies: this estimate is on the safe side."""
MESSAGE_TOKENS = 8
"""Around each message, for its role."""


def estimate_tokens(messages: Iterable[Mapping[str, str]]) -> int:
    """Tokens of a prompt, by its length."""
    return sum(MESSAGE_TOKENS + math.ceil(len(message["content"]) / CHARS_PER_TOKEN) for message in messages)


def used_tokens(messages: Iterable[Mapping[str, str]], said: Completion) -> tuple[int, int]:
    """Tokens of a prompt and of its answer: as the endpoint tells them, by length where it tells none.

    An endpoint without ``usage`` would otherwise never reach ``max_cost``.
    """
    told = said.prompt_tokens, said.completion_tokens
    return told[0] or estimate_tokens(messages), told[1] or math.ceil(len(said.text) / CHARS_PER_TOKEN)


@dataclass(frozen=True)
class Estimate:
    """Of asking each open question once; invalid answers are asked for again on top.

    Attributes:
        questions: to be asked.
        tokens_in: of their prompts, by length.
        tokens_out: of the answers, at most.
        cost: in the currency of the prices.
    """

    questions: int
    tokens_in: int
    tokens_out: int
    cost: float

    @classmethod
    def of(cls, prompts: Sequence[Sequence[Mapping[str, str]]], chosen: SynthesizeSettings) -> Estimate:
        """The estimate for some prompts."""
        tokens_in = sum(map(estimate_tokens, prompts))
        tokens_out = len(prompts) * chosen.max_new_tokens
        return cls(len(prompts), tokens_in, tokens_out, price(tokens_in, tokens_out, chosen))

    def line(self, chosen: SynthesizeSettings) -> str:
        """One line for people."""
        told = (
            f"{self.questions:,} questions to ask: about {self.tokens_in:,} tokens in, at most {self.tokens_out:,} out"
        )
        more = f"; up to {chosen.retries} more times where an answer is not valid" if chosen.retries else ""
        return told + (f"; cost at most {self.cost:,.2f}" if _priced(chosen) else "") + more


def price(tokens_in: int, tokens_out: int, chosen: SynthesizeSettings) -> float:
    """What tokens cost."""
    return (tokens_in * chosen.price_in + tokens_out * chosen.price_out) / 1e6


def require_affordable(spent: float, estimate: Estimate, chosen: SynthesizeSettings) -> None:
    """Raise a UserError if what is spent and what is open may cost more than ``synthesize.max_cost``."""
    if chosen.max_cost is not None and spent + estimate.cost > chosen.max_cost:
        already = f" besides the {spent:,.2f} that are spent" if spent else ""
        raise UserError(
            f"synthesize.max_cost = {chosen.max_cost:g}: {estimate.questions:,} questions may cost "
            f"{estimate.cost:,.2f}{already}; raise it, or lower max_recordings, pairs_per_recording or max_new_tokens"
        )


def require_budget(tokens: tuple[int, int], chosen: SynthesizeSettings) -> None:
    """Raise a UserError if ``tokens`` (in, out) have cost all of ``synthesize.max_cost``."""
    if chosen.max_cost is not None and (spent := price(*tokens, chosen)) >= chosen.max_cost:
        raise UserError(
            f"synthesize.max_cost = {chosen.max_cost:g} is spent ({spent:,.2f}); every answer is kept: raise it and "
            "start again"
        )


def _priced(chosen: SynthesizeSettings) -> bool:
    return bool(chosen.price_in or chosen.price_out)
