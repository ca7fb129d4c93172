"""The commands of the documentation: cheap ones are run as they stand, jobs' lines go through the jobs' own parser.

What neither can be said of is marked: ``# needs …`` begins its block or ends its line.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.run import chosen as benchmarks_chosen
from serve import keys
from stetholm.cluster.__main__ import main as cluster
from stetholm.job import _parser as job_parser
from stetholm.settings import load_settings
from stetholm.training import memory_plan
from tests.conftest import ROOT
from tests.docs.test_docs import FENCE, WRITTEN, name, targets

NEEDS = "a cloud|Kubernetes|Docker|machines|an API key|your data|a run|the endpoint|other programs"
MARK = re.compile(rf"# needs (?:{NEEDS})\b")
PARTS = ("api", "evaluation", "explain", "probing", "synthesis", "training", "serving")
OTHERS = {"README.md", *(f"docs/{page}.md" for page in PARTS)}
"""Pages whose lines with data or keys of your own are not marked yet; all else holds for them too."""
PROGRAMS = "python3?|make|ray|serve|curl|kubectl|helm|docker|prometheus|grafana|soffice|find"
OURS = re.compile(rf"(?:\.venv/bin/)?(?:{PROGRAMS})$")
FILL_IN = re.compile(r"(=|)<(\w[\w ]*)>")
YOURS = re.compile(r"/data/|s3://(?!stetholm/)|\.jsonl|https://|…|<[^>]+>|\$")
"""In a line that is not run: what somebody must have, or fill in."""


def filled(found: re.Match[str]) -> str:
    """Something for ``<what the reader fills in>``: a URI, as a setting's value."""
    name = found[2].replace(" ", "_")
    return f"=s3://{name}" if found[1] else name


class Command(NamedTuple):
    page: str
    line: str
    marked: bool

    @property
    def words(self) -> list[str]:
        """Of the first command of the line: without environment, interpreter's folder, redirections and pipes."""
        lexer = shlex.shlex(FILL_IN.sub(filled, self.line), posix=True, punctuation_chars="|<>&")
        lexer.whitespace_split, lexer.commenters = True, "#"
        found: list[str] = []
        for word in lexer:
            if set(word) <= set("|<>&"):
                break
            found.append(word)
        while found and re.fullmatch(r"[A-Z_]+=.*", found[0]):
            found.pop(0)
        return [found[0].removeprefix(".venv/bin/"), *found[1:]] if found else []


def commands() -> Iterator[Command]:
    """All lines of the blocks that are no other language, and that begin a program."""
    for page in WRITTEN:
        for info, body in FENCE.findall(page.read_text()):
            if info.strip() not in ("", "sh", "bash", "console"):
                continue
            whole = bool(MARK.match(body))
            for line in joined(body):
                first = next((word for word in line.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)), "")
                if OURS.match(first):
                    yield Command(name(page), line, whole or bool(MARK.search(line)))


def joined(body: str) -> list[str]:
    """Lines, with those that go on (after a backslash, or in quotes) put together."""
    found: list[str] = []
    for line in body.splitlines():
        if found and (found[-1].endswith("\\") or len(re.findall(r"(?<!\\)[\"']", found[-1])) % 2):
            found[-1] = f"{found[-1].removesuffix(chr(92))} {line.strip()}"
        else:
            found.append(line)
    return found


COMMANDS = list(commands())
ALL = pytest.mark.parametrize("command", COMMANDS, ids=[f"{one.page}: {one.line[:60]}" for one in COMMANDS])


def job_line(words: list[str]) -> list[str] | None:
    """The arguments of a job, whoever starts it; None for another command."""
    if words[:3] == ["ray", "job", "submit"] and "--" in words:
        words = words[words.index("--") + 1 :]
    if len(words) > 1 and words[0].startswith("python") and re.fullmatch(r"jobs/\w+\.py", words[1]):
        return words[2:]
    return words[3:] if words[1:3] == ["-m", "serve.deploy"] else None


def runs(words: list[str]) -> bool:
    """Whether a line is cheap and harmless: it reads and prints."""
    module = words[2] if words[1:2] == ["-m"] else ""
    return module in ("serve.keys", "stetholm.training.memory_plan") or (
        module == "stetholm.cluster" and words[3] in ("render", "plan")
    )


@ALL
def test_each_line_is_run_or_parsed_or_marked(command: Command) -> None:
    words = command.words
    if command.marked or runs(words):
        return
    known = words[0] == "make" or words[1:3] == ["-m", "benchmarks.run"] or job_line(words) is not None
    assert known or command.page in OTHERS, f"nothing reads this line: begin its block with “# needs …” ({NEEDS})"
    given = YOURS.search(command.line.partition(" #")[0])
    assert given is None or command.page in OTHERS, f"{given[0]} is not here: mark it “# needs your data” or the like"


@ALL
def test_cheap_ones_are_run(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.words
    if not runs(words):
        return
    monkeypatch.chdir(ROOT)
    arguments = [measured(word) for word in words[3:]]
    monkeypatch.setattr(sys, "argv", [words[2], *arguments])
    if words[2] == "stetholm.cluster":
        assert cluster(arguments) == 0, capsys.readouterr().err
    else:
        (keys if words[2] == "serve.keys" else memory_plan).main()
    assert capsys.readouterr().out.strip()


def measured(word: str) -> str:
    """``20.out``: what a run printed; those that docs/planning.md is about are kept."""
    return str(ROOT / "tests/cluster/plan_runs" / word) if re.fullmatch(r"\d+\.out", word) else word


@ALL
def test_jobs_lines_give_settings(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = job_line(command.words)
    if arguments is not None:
        parsed = job_parser("any", lambda settings, storage: {}).parse_args(arguments)
        load_settings(parsed.config, parsed.set, {})
    for word in command.words[1:] if command.words[0] == "make" else []:
        key, given, value = word.partition("=")
        assert given or key in {one for target in targets() for one in target.split()}, word
        if key == "SET":
            load_settings(None, value.split(), {})


@ALL
def test_benchmarks_exist(command: Command) -> None:
    if command.words[1:3] == ["-m", "benchmarks.run"]:
        assert benchmarks_chosen(command.words[3:])


def test_the_rules_meet_something() -> None:
    assert sum(runs(one.words) for one in COMMANDS) > 10
    assert sum(job_line(one.words) is not None for one in COMMANDS) > 40
    assert sum(one.marked for one in COMMANDS) > 20
    assert all(Path(ROOT / page).exists() for page in OTHERS)


def test_a_program_is_the_first_word_whatever_stands_around_it() -> None:
    line = 'STETHOLM_HOME=/x .venv/bin/python -m serve.keys <name> --limits "60/minute; 5000/day" >> keys.txt  # once'
    words: Any = Command("", line, False).words
    assert words == ["python", "-m", "serve.keys", "name", "--limits", "60/minute; 5000/day"]
