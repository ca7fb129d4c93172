"""Tokens are counted by who made them, once."""

from serve.metrics import ModelMetrics, RequestWatch
from stetholm.serving.engine import Delta


class Counts(ModelMetrics):
    """Which remember what they were told."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, float] = {}
        self.seen: list[float] = []
        counts = self

        class Counter:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                counts.found[tags["kind"]] = counts.found.get(tags["kind"], 0) + value

            def observe(self, value: float) -> None:
                counts.seen.append(value)

        self.tokens = self.first_token = Counter()  # type: ignore[assignment]


def test_a_request_that_was_taken_up_counts_what_it_adds():
    counts = Counts()
    with RequestWatch(counts, None) as watch:
        watch.saw(Delta(0, "a", None, 9, 1))
        watch.saw(Delta(0, "bc", None, 9, 3))
        watch.saw(Delta(1, "x", "stop", 9, 2))
    assert counts.found == {"prompt": 9, "completion": 5} and len(counts.seen) == 1
    with RequestWatch(counts, None, [[1, 2, 3], [4, 5]]) as watch:
        watch.saw(Delta(1, "", "stop", 9, 2))
        watch.saw(Delta(0, "d", "length", 9, 7))
    assert counts.found == {"prompt": 9, "completion": 9} and len(counts.seen) == 1
