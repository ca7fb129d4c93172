"""What a corpus holds, and what looks wrong in it: counts, class balance, durations, a sheet of spectrograms.

python jobs/inspect.py --set run.name=first
python jobs/inspect.py --set corpus.uri=s3://stetholm/corpora/icbhi
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any

if __name__ == "inspect":
    # A script's own folder comes first on sys.path (here and in Ray's workers), so that `import inspect` of any library
    # finds this file in place of the standard library's module. Step aside: put that one in our place, whole.
    _here = os.path.realpath(os.path.dirname(__file__))
    _spec = PathFinder.find_spec("inspect", [path for path in sys.path if os.path.realpath(path) != _here])
    assert _spec is not None and _spec.loader is not None
    sys.modules["inspect"] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["inspect"])
else:
    from stetholm.corpus.inspection import inspect_corpus
    from stetholm.job import run_job
    from stetholm.settings import Settings
    from stetholm.storage import Storage


def main(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Inspect the corpus of the settings."""
    return inspect_corpus(settings, storage)


if __name__ == "__main__":
    run_job("inspect", main)
