"""The positions that are scored: where labels stand. The head is applied to them and to no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

IGNORE = -100
"""Label of a position that is not scored."""

Head = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ResponseTokens:
    """The K scored tokens of a batch of N rows.

    Attributes:
        hidden: (K, d), the states that predict them.
        targets: (K,), their ids.
        rows: (K,), the row of each.
        n: N.
    """

    hidden: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    n: int

    @classmethod
    def select(cls, hidden: torch.Tensor, labels: torch.Tensor) -> ResponseTokens:
        """From ``hidden`` (N, T, d) and ``labels`` (N, T): position t predicts label t + 1."""
        shifted = labels[:, 1:]
        rows, columns = torch.nonzero(shifted != IGNORE, as_tuple=True)
        return cls(hidden[rows, columns], shifted[rows, columns], rows, len(labels))

    def losses(self, head: Head) -> torch.Tensor:
        """Cross-entropy (K,) in float32."""
        return F.cross_entropy(head(self.hidden).float(), self.targets, reduction="none")

    def loss(self, head: Head, items: torch.Tensor | float | None = None) -> torch.Tensor:
        """Sum of the losses over ``items``, or over K.

        With K = 0 it is a zero that still depends on the parameters, so that every rank runs a backward pass.
        """
        total = self.losses(head).sum()
        return total / (max(len(self.targets), 1) if items is None else items)

    def logps(self, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed log-probabilities (N,) and token counts (N,) by row."""
        losses = self.losses(head)
        sums = torch.zeros(self.n, dtype=losses.dtype, device=losses.device).index_add(0, self.rows, -losses)
        return sums, torch.bincount(self.rows, minlength=self.n)


def repeat_recordings(audio: torch.Tensor, blocks: Sequence[int], times: int) -> torch.Tensor:
    """Repeat each row's recordings ``times`` times, keeping a row's recordings together.

    Args:
        audio: (R, k, d), the rows' recordings one row after the other.
        blocks: how many recordings each row has; their sum is R.
        times: e.g. the number of beams.
    """
    if times == 1:
        return audio
    rows = torch.split(audio, list(blocks))
    return torch.cat([row for row in rows for _ in range(times)])


def recordings_of(input_ids: torch.Tensor, recordings: int, token: int, size: int) -> list[int]:
    """How many of all ``recordings`` each prompt has, by its placeholders.

    Args:
        input_ids: (N, T).
        recordings: how many there are for all prompts.
        token: the placeholder's id.
        size: placeholders a recording.

    Raises:
        ValueError: the placeholders are not ``size`` a recording.
    """
    found = (input_ids == token).sum(dim=1).tolist()
    if sum(found) != recordings * size:
        raise ValueError(
            f"the prompts have {sum(found)} audio placeholders, but {recordings} recordings of {size} need "
            f"{recordings * size}: build the prompts with StethoLMProcessor, with the number of recordings of each"
        )
    for row, placeholders in enumerate(found):
        if placeholders % size:
            raise ValueError(
                f"prompt {row} has {placeholders} audio placeholders, but a recording takes {size}: do not cut prompts"
            )
    return [placeholders // size for placeholders in found]
