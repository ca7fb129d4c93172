"""What a job may cost."""

import pytest
from pydantic import ValidationError

from stetholm.corpus.synthesis.cost import Estimate, price, require_affordable, require_budget
from stetholm.errors import UserError
from stetholm.settings import SynthesizeSettings

PROMPT = [{"role": "user", "content": "x" * 350}]


def settings(**changes):
    return SynthesizeSettings(**{"price_in": 2.0, "price_out": 8.0, "max_new_tokens": 100, "retries": 0, **changes})


def test_the_estimate_goes_by_the_length_of_the_prompts():
    estimate = Estimate.of([PROMPT] * 10, settings())
    assert (estimate.questions, estimate.tokens_in, estimate.tokens_out) == (10, 1080, 1000)
    assert estimate.cost == pytest.approx((1080 * 2 + 1000 * 8) / 1e6)
    assert (
        estimate.line(settings()) == "10 questions to ask: about 1,080 tokens in, at most 1,000 out; cost at most 0.01"
    )
    assert "cost" not in estimate.line(SynthesizeSettings()) and "2 more times" in estimate.line(SynthesizeSettings())


def test_too_much_is_refused_before_the_start_and_stopped_later():
    estimate = Estimate.of([PROMPT] * 1000, settings())
    require_affordable(0.0, estimate, settings())
    require_affordable(0.0, estimate, settings(max_cost=1.1))
    with pytest.raises(UserError, match=r"1,000 questions may cost 1\.02 besides the 0\.50 that are spent"):
        require_affordable(0.5, estimate, settings(max_cost=1.1))
    require_budget((100_000, 99_000), settings(max_cost=1))
    with pytest.raises(UserError, match=r"is spent .* raise it and start again"):
        require_budget((100_000, 100_000), settings(max_cost=1))
    assert price(1_000_000, 500_000, settings()) == 6.0


def test_a_limit_needs_prices():
    with pytest.raises(ValidationError, match="max_cost needs price_in and price_out"):
        SynthesizeSettings(max_cost=1.0)
