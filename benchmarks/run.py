"""Run benchmarks: ``python -m benchmarks.run data``, ``… generate/evaluate``, ``… all``.

Everything they write goes to a home folder of their own, which is removed afterwards.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.report import Result

GROUPS = ("data", "model", "train", "generate", "encoders", "serve", "cluster", "heart")
BENCHES = {
    "data/bare": "benchmarks.data.bare:bare",
    "data/published": "benchmarks.data.published:published",
    "data/wait": "benchmarks.data.wait:wait",
    "data/resume": "benchmarks.data.resume:resume",
    "data/memory": "benchmarks.data.memory:memory_bound",
    "model/load": "benchmarks.load:load",
    "model/parity": "benchmarks.parity:parity",
    "train/sft": "benchmarks.train.sft:sft",
    "train/dpo": "benchmarks.train.dpo:dpo",
    "train/overhead": "benchmarks.train.overhead:overhead",
    "train/scaling": "benchmarks.train.scaling:scaling",
    "train/recovery": "benchmarks.train.recovery:recovery",
    "train/mfu": "benchmarks.train.mfu:mfu",
    "train/memory": "benchmarks.train.memory:memory",
    "generate/evaluate": "benchmarks.generate:evaluate",
    "generate/prefer": "benchmarks.generate:prefer",
    "generate/published": "benchmarks.generate:published",
    "encoders/clip": "benchmarks.encoders:clip",
    "serve/fastapi": "benchmarks.serve_fastapi:fastapi",
    "serve/engine": "benchmarks.serve_engine:engine",
    "serve/overhead": "benchmarks.serve_overhead:overhead",
    "serve/faults": "benchmarks.serve_faults:faults",
    "serve/haproxy": "benchmarks.serve_haproxy:compared",
    "serve/disconnect": "benchmarks.serve_disconnect:disconnect",
    "heart/diagnosis": "benchmarks.heart:diagnosis",
    "heart/mdpo": "benchmarks.heart:mdpo",
    "cluster/submit": "benchmarks.submit:submit",
}
"""Every benchmark there is: its name, and the function that yields its results."""


def chosen(words: list[str]) -> list[str]:
    """Names of the benchmarks that the words ask for.

    Raises:
        SystemExit: a word is neither a benchmark, nor a group that has one, nor ``all``.
    """
    names: list[str] = []
    for word in words:
        found = [name for name in BENCHES if word in ("all", name, name.split("/")[0])]
        if not found and word in GROUPS:
            sys.exit(f"bench: there is no benchmark of the group {word!r} yet")
        if not found:
            sys.exit(f"bench: there is no benchmark {word!r}; there are: {', '.join(BENCHES)}")
        names += found
    return list(dict.fromkeys(names))


def function(name: str) -> Callable[[], Iterator[Result]]:
    """The benchmark's function; importing it late keeps the list of names quick."""
    module, attribute = BENCHES[name].split(":")
    found: Callable[[], Iterator[Result]] = getattr(importlib.import_module(module), attribute)
    return found


def main(words: list[str]) -> None:
    """Run what the words ask for."""
    if not words:
        sys.exit(f"usage: python -m benchmarks.run all | {' | '.join(GROUPS)} | {' | '.join(BENCHES)}")
    names = chosen(words)
    with tempfile.TemporaryDirectory(prefix="stetholm-bench-", ignore_cleanup_errors=True) as home:
        os.environ["STETHOLM_HOME"] = home
        from benchmarks.report import publish

        for name in names:
            print(f"bench: {name}", file=sys.stderr, flush=True)
            for result in function(name)():
                publish(result)


if __name__ == "__main__":
    main(sys.argv[1:])
