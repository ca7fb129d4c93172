"""The draws follow the model's probabilities."""

import torch

from stetholm.serving import Request, Sampling
from stetholm.serving.decoding import RowSampler
from stetholm.serving.prompts import Prompt
from stetholm.serving.rows import Row


def draws(temperature: float, top_p: float, count: int = 4000) -> torch.Tensor:
    """Shares of the tokens over ``count`` answers of one seeded request."""
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=3, n=count)
    prompt = Prompt(Request("q", sampling=sampling), [1], 8)
    rows = [Row(prompt, index, lambda _: "", frozenset()) for index in range(count)]
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(count, 4)
    picked = RowSampler(rows, torch.device("cpu"))(torch.zeros(count, 0), scores).argmax(-1)
    return torch.bincount(picked, minlength=4) / count


def test_shares_are_the_probabilities():
    assert torch.allclose(draws(1.0, 1.0), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03)


def test_temperature_sharpens():
    expected = torch.tensor([0.5, 0.3, 0.15, 0.05]) ** 2
    assert torch.allclose(draws(0.5, 1.0), expected / expected.sum(), atol=0.03)


def test_top_p_leaves_the_tail_out():
    assert torch.allclose(draws(1.0, 0.7), torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.03)


def test_a_tiny_temperature_is_greedy():
    assert draws(1e-30, 1.0, 50)[0] == 1
