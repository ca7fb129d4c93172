"""The whole path on this machine: ``python -m stetholm.demo [--run NAME] [--jsonl FILE --audio FOLDER] [--set a=b]``.

Exit status: 0 done; 2 bad settings or input; 1 anything else; 130 interrupted. Nothing is left running in any case.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import traceback
from datetime import datetime
from pathlib import Path
from types import FrameType

from rich.console import Console

from stetholm.demo.run import Demo, DemoFailed
from stetholm.errors import UserError
from stetholm.storage.paths import log_file


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m stetholm.demo", description=__doc__)
    parser.add_argument(
        "--run", default=f"demo-{datetime.now():%Y%m%d-%H%M%S}", help="run.name; the same again continues"
    )
    parser.add_argument("--jsonl", type=Path, help="pairs of your own in StethoBench's format (else synthetic)")
    parser.add_argument("--audio", type=Path, help="folder that the pairs' file names are below")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    return parser.parse_args(argv)


def overrides(parsed: argparse.Namespace) -> list[str]:
    """Settings for all jobs of this demo.

    Raises:
        UserError: a path that is not there, or one of the two without the other.
    """
    if (parsed.jsonl is None) != (parsed.audio is None):
        raise UserError("recordings of your own need both JSONL=<file> and AUDIO=<folder>")
    given = [f"run.name={parsed.run}"]
    if parsed.jsonl is not None:
        if not parsed.jsonl.is_file():
            raise UserError(f"JSONL={parsed.jsonl}: no such file")
        if not parsed.audio.is_dir():
            raise UserError(f"AUDIO={parsed.audio}: no such folder")
        given += [
            "corpus.source=stethobench",
            f"corpus.jsonl={parsed.jsonl.resolve()}",
            f"corpus.audio={parsed.audio.resolve()}",
        ]
    return [*given, *parsed.overrides]


def again(parsed: argparse.Namespace) -> str:
    """The command that continues this run."""
    given = {"RUN": parsed.run, "JSONL": parsed.jsonl, "AUDIO": parsed.audio, "SET": " ".join(parsed.overrides)}
    return " ".join(["make demo", *(f"{name}={shlex.quote(str(value))}" for name, value in given.items() if value)])


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False, soft_wrap=True)
    parsed = arguments(argv)
    try:
        Demo(overrides(parsed), console).run()
    except DemoFailed as failure:
        errors.print(f"demo: {failure}", style="red", markup=False)
        errors.print(f"demo: the whole log is {failure.log}", markup=False)
        errors.print(f"demo: to continue where it stopped: {again(parsed)}", markup=False)
        return failure.status
    except UserError as error:
        errors.print(f"demo: {error}", style="red", markup=False)
        return 2
    except Exception as error:
        log = log_file(f"{parsed.run}.log")
        log.write_text(traceback.format_exc(), encoding="utf-8")
        errors.print(f"demo: failed: {type(error).__name__}: {error} (traceback: {log})", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print(f"demo: interrupted; to continue: {again(parsed)}", markup=False)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
