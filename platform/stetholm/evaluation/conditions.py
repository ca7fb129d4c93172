"""The conditions under which answers are made: the audio as it is, none, another recording's, the bare language model.

A model that listens must be better with its audio than without, and than with a stranger's; and it must have learned
something that its language model did not know. Without these control rows a good score may come from the wording of
the question alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from stetholm.evaluation.examples import Example
from stetholm.evaluation.generation import Question
from stetholm.serving.engine import Sampling

AUDIO, WITHHELD, SHUFFLED, UNTOUCHED = "audio", "withheld", "shuffled", "untouched"
ASKED = (AUDIO, WITHHELD, SHUFFLED)
"""Those under which the checkpoint itself answers."""
CONDITIONS = (*ASKED, UNTOUCHED)
CONTROLS = CONDITIONS[1:]
CONTROL_NAMES = {
    WITHHELD: "audio withheld",
    SHUFFLED: "audio shuffled",
    UNTOUCHED: "language model untouched",
}
"""As tables call them. The last: the checkpoint's language model without adapters and without audio."""


def derangement(examples: Sequence[Example], seed: int) -> dict[str, str]:
    """Another recording for each: a seeded permutation without fixed points, within each dataset.

    A dataset with a single recording exchanges it with the others' singles; if there is only one in all, it stays out.
    """
    by_dataset: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        by_dataset[example.dataset].update(example.recording_ids)
    groups = [sorted(names) for _, names in sorted(by_dataset.items()) if len(names) > 1]
    singles = sorted({name for names in by_dataset.values() if len(names) == 1 for name in names})
    if len(singles) == 1 and groups:
        groups[0] = sorted({*groups[0], *singles})
    elif len(singles) > 1:
        groups.append(singles)
    rng = np.random.default_rng(seed)
    exchanged: dict[str, str] = {}
    for group in groups:
        order = [group[index] for index in rng.permutation(len(group))]
        # Each takes its successor's in a ring: no one keeps its own.
        exchanged.update(zip(order, [*order[1:], order[0]], strict=True))
    return exchanged


def question(example: Example, condition: str, exchanged: Mapping[str, str], sampling: Sampling) -> Question | None:
    """What the model is asked about ``example``; None where it has no other recording to be exchanged with."""
    recordings = example.recording_ids
    if condition == WITHHELD:
        recordings = ()
    elif condition == SHUFFLED:
        if not exchanged.keys() >= set(recordings):
            return None
        recordings = tuple(exchanged[name] for name in recordings)
    return Question(example.instruction, example.dataset, recordings, (sampling,))
