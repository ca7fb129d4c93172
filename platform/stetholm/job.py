"""What every script in ``jobs/`` does around its own work: settings, storage, the RESULT line, exit status.

0 = done, 2 = bad settings or bad input (one line on stderr), 1 = anything else (one line naming a log file). One job
at a time works on a run: a second one of the same ``run.name`` ends with status 2 (see ``runs.hold_run``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pydoc
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from stetholm.errors import Stopped, UserError
from stetholm.runs import hold_run
from stetholm.settings import Settings, load_settings
from stetholm.stopping import Told, stop_signals
from stetholm.storage import Storage, open_storage
from stetholm.storage.lease import LeaseHeld
from stetholm.storage.paths import log_file

JobMain = Callable[[Settings, Storage], dict[str, Any]]

_ERROR_LINE = re.compile(r"^(stetholm(?:\.\w+)+): (.+)$", re.MULTILINE)
_RAY_DATA_ADVICE = "\nFailed to apply UDF"
"""Ray Data writes below the message of what a task raised."""
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")


def run_job(name: str, main: JobMain, argv: Sequence[str] | None = None, *, alone: bool = True) -> NoReturn:
    """Run a job and end the process with its exit status.

    Args:
        name: the job's name, as in ``jobs/<name>.py``.
        main: the job's work; its dict, with at least ``output``, goes into the RESULT line.
        argv: default ``sys.argv[1:]``.
        alone: hold the run, so that no other job works on it; not for what only reads, or holds it by itself.
    """
    started = time.monotonic()
    secrets = _Secrets()
    try:
        with stop_signals(raises=True):
            arguments = _parser(name, main).parse_args(argv)
            settings = load_settings(arguments.config, arguments.set)
            secrets.add(settings.storage.access_key, settings.storage.secret_key)
            storage = open_storage(settings.storage)
            secrets.add(storage.access_key, storage.secret_key, storage.session_token)
            with hold_run(settings, storage, name, end_at_once(name)) if alone else contextlib.nullcontext():
                result = main(settings, storage)
    except Told as told:
        _end(1, f"{name}: {told}; the same line again goes on from what is done")
    except KeyboardInterrupt:
        _end(1, f"{name}: interrupted")
    except Exception as error:
        _end(*_verdict(name, error, secrets))
    line = {"job": name, "output": None, "seconds": round(time.monotonic() - started, 1), **result}
    sys.stderr.flush()
    print(f"RESULT {json.dumps(_plain(line), ensure_ascii=False)}", flush=True)
    sys.exit(0)


def find_user_error(error: BaseException) -> UserError | None:
    """The UserError behind an exception: itself, its causes, or what Ray's exceptions carry from other processes."""
    for candidate in _chain(error):
        if isinstance(candidate, UserError) and not _is_ray_task_error(candidate):
            return candidate
    return None


def _is_ray_task_error(error: BaseException) -> bool:
    """Whether it is Ray's, which poses as its cause's class but whose text is the remote traceback."""
    return any(cls.__name__ == "RayTaskError" for cls in type(error).__mro__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and all exceptions behind it, nearest first, each once."""
    queue, seen = [error], set()
    while queue:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        queue += [inner for inner in _behind(current) if isinstance(inner, BaseException)]


def _behind(error: BaseException) -> list[Any]:
    inner: list[Any] = [
        getattr(error, "cause", None),  # ray.exceptions.RayTaskError
        getattr(error, "_base_exc", None),  # ray.train's UserExceptionWithTraceback
        getattr(error, "controller_failure", None),  # ray.train.ControllerError
        *getattr(error, "exceptions", ()),  # ExceptionGroup
    ]
    failures = getattr(error, "worker_failures", None)  # ray.train.WorkerGroupError
    if isinstance(failures, dict):
        inner += failures.values()
    if _is_ray_task_error(error):
        inner.append(_named_in(str(error)))
    context = None if error.__suppress_context__ else error.__context__
    return [*inner, error.__cause__, context]


def _named_in(remote_traceback: str) -> UserError | None:
    """The UserError that a remote traceback names.

    Ray Data wraps what a task raises, and pickling drops the wrapped exception's cause: only the text still tells.
    """
    for name, message in reversed(_ERROR_LINE.findall(remote_traceback)):
        kind = pydoc.locate(name)
        if isinstance(kind, type) and issubclass(kind, UserError):
            return UserError(message)
    return None


def _verdict(name: str, error: Exception, secrets: _Secrets) -> tuple[int, str]:
    """Exit status and line for a failed job; the traceback of an unexpected failure goes to a log file."""
    known = find_user_error(error)
    if known is not None:
        return 2, secrets.hide(f"{name}: {_one_line(str(known).partition(_RAY_DATA_ADVICE)[0])}")
    if isinstance(error, Stopped):
        return 1, secrets.hide(f"{name}: {_one_line(error)}")
    path = log_file(f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log")
    path.write_text(secrets.hide("".join(traceback.format_exception(error))), encoding="utf-8")
    return 1, secrets.hide(f"{name}: failed: {type(error).__name__}: {_one_line(error)[:300]} (traceback: {path})")


def end_at_once(name: str) -> Callable[[LeaseHeld], None]:
    """How a job ends that has lost its run to another one: at once, as whatever it writes would disturb that one.

    Its workers and a Ray of its own end with it.
    """

    def end(lost: LeaseHeld) -> None:
        sys.stdout.flush()
        print(f"{name}: {_one_line(lost)}: ended; the same line again goes on", file=sys.stderr, flush=True)
        os._exit(2)

    return end


def _end(status: int, line: str) -> NoReturn:
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
    sys.exit(status)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors: one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def _parser(name: str, main: JobMain) -> argparse.ArgumentParser:
    about = getattr(sys.modules.get(main.__module__), "__doc__", None)
    parser = _Parser(
        prog=f"jobs/{name}.py",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="settings file (default: cluster.yaml here, if it exists)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, e.g. train.max_steps=5; repeatable",
    )
    return parser


class _Secrets:
    """Values that must not be printed: storage keys, and what the environment calls key, token, secret or password."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self.add(*(value for name, value in os.environ.items() if _SECRET_NAME.search(name)))

    def add(self, *values: Any) -> None:
        for value in values:
            text = value.get_secret_value() if hasattr(value, "get_secret_value") else value
            if text and len(text) >= 6:
                self._values.add(text)

    def hide(self, text: str) -> str:
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, "***")
        return text


def _plain(value: Any) -> Any:
    """The value as JSON knows it: numpy scalars as numbers, not-a-number and infinities as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
