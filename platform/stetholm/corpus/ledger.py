"""Which samples a training run has consumed, by epoch.

Ray Data's iterator cannot resume inside an epoch (ray issue 37633). The ledger can: a trainer adds the ids of each
batch it has trained on and saves the ledger with the checkpoint; on a restart the stream leaves them out, whatever the
number of workers. So each sample is seen exactly once an epoch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

_VERSION = 1


class Ledger:
    """Consumed sample ids by epoch. Adding an id twice changes nothing, so that a repeated report does no harm."""

    def __init__(self) -> None:
        self._seen: dict[int, set[str]] = {}

    def add(self, epoch: int, ids: Iterable[str]) -> None:
        """Note that the samples ``ids`` have been trained on in ``epoch`` (from 0)."""
        self._seen.setdefault(int(epoch), set()).update(ids)

    def seen(self, epoch: int) -> frozenset[str]:
        """Ids consumed in ``epoch``."""
        return frozenset(self._seen.get(epoch, ()))

    @property
    def epochs(self) -> list[int]:
        """Epochs of which anything has been consumed, in order."""
        return sorted(epoch for epoch, ids in self._seen.items() if ids)

    def merge(self, other: Ledger) -> None:
        """Add what another rank's ledger holds."""
        for epoch, ids in other._seen.items():
            self.add(epoch, ids)

    def __len__(self) -> int:
        return sum(len(ids) for ids in self._seen.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self._content() == other._content()

    __hash__ = None  # type: ignore[assignment]

    def _content(self) -> dict[int, set[str]]:
        return {epoch: ids for epoch, ids in self._seen.items() if ids}

    def to_json(self) -> str:
        """The ledger as JSON text. Equal epochs (all the finished ones) share one list of ids."""
        lists: dict[frozenset[str], int] = {}
        epochs = {str(epoch): lists.setdefault(self.seen(epoch), len(lists)) for epoch in self.epochs}
        return json.dumps({"version": _VERSION, "epochs": epochs, "ids": [sorted(ids) for ids in lists]})

    @classmethod
    def from_json(cls, text: str | bytes) -> Ledger:
        """Read back what :meth:`to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.get("version") != _VERSION:
            raise ValueError("not a ledger, or one of another version")
        ledger = cls()
        for epoch, index in raw["epochs"].items():
            ledger.add(int(epoch), raw["ids"][index])
        return ledger
