"""The readers by name (``corpus.source``): a module a source. ``READERS`` lists them all.

``stethobench`` and ``synthetic`` bring their pairs along; of a public dataset (``publications``) the pairs are made
from its labels.
"""

from __future__ import annotations

import difflib

from stetholm.corpus.source import Reader
from stetholm.corpus.sources import stethobench, synthetic
from stetholm.corpus.sources.publications import PUBLICATIONS, reader_of_publication
from stetholm.errors import UserError
from stetholm.settings import Settings

READERS: dict[str, Reader] = {
    "stethobench": stethobench.READER,
    "synthetic": synthetic.READER,
    **{name: reader_of_publication(name) for name in PUBLICATIONS},
}
"""Every reader by its name in ``corpus.source``."""


def reader_of(settings: Settings) -> Reader:
    """The reader that the settings ask for; ``corpus.jsonl`` alone asks for ``stethobench``.

    Raises:
        UserError: ``corpus.source`` names none.
    """
    return READERS[source_name(settings)]


def source_name(settings: Settings) -> str:
    """Name of the reader that :func:`reader_of` gives."""
    corpus = settings.corpus
    if corpus.jsonl and corpus.source == "synthetic":  # the default; it takes no file, so the file decides
        return "stethobench"
    if corpus.source not in READERS:
        near = difflib.get_close_matches(corpus.source, READERS, n=1)
        raise UserError(
            f"corpus.source: there is no reader {corpus.source!r}; choose from {', '.join(sorted(READERS))}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
        )
    return corpus.source
