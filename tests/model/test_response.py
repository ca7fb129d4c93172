import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.model.response import IGNORE, ResponseTokens, repeat_recordings


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 2**16))
def test_loss_and_logps_equal_those_over_all_positions(n: int, t: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, head = torch.randn(n, t, 8, generator=generator), torch.randn(11, 8, generator=generator)
    labels = torch.randint(0, 11, (n, t), generator=generator)
    labels[torch.rand(n, t, generator=generator) < 0.4] = IGNORE
    tokens = ResponseTokens.select(hidden, labels)
    full = F.cross_entropy((hidden @ head.T)[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1), reduction="none")
    counts = (labels[:, 1:] != IGNORE).sum(dim=1)
    sums, n_tokens = tokens.logps(lambda h: h @ head.T)
    torch.testing.assert_close(sums, -full.reshape(n, t - 1).sum(dim=1))
    assert torch.equal(n_tokens, counts)
    torch.testing.assert_close(tokens.loss(lambda h: h @ head.T), full.sum() / counts.sum().clamp(min=1))
    torch.testing.assert_close(tokens.loss(lambda h: h @ head.T, 7), full.sum() / 7)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(1, 3))
def test_a_rows_recordings_stay_together(blocks: list[int], times: int) -> None:
    audio = torch.arange(sum(blocks)).reshape(-1, 1, 1)
    rows = iter(audio.flatten().tolist())
    expected = [one for block in blocks for row in [[next(rows) for _ in range(block)]] for one in row * times]
    assert repeat_recordings(audio, blocks, times).flatten().tolist() == expected
