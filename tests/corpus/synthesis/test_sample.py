"""The sample for the docs."""

import json
import subprocess
import sys
from pathlib import Path

from stetholm.corpus.synthesis.output import lines, pair_row
from stetholm.corpus.synthesis.sample import choose, markdown
from stetholm.corpus.synthesis.template_writer import write
from stetholm.corpus.synthesis.validation import Draft
from tests.corpus.synthesis.known import all_pairs, synthetic

ROWS = [pair_row(one, Draft(*json.loads(write(one, 0)).values()), "templates") for one in all_pairs(synthetic(12))]


def test_tasks_come_in_turn_and_always_the_same():
    rows = choose(ROWS, 14)
    assert len({row["task"] for row in rows[:7]}) == 7 and rows == choose(list(reversed(ROWS)), 14)
    assert rows != choose(ROWS, 14, seed=1)
    text = markdown(rows)
    assert text.count("\n") == 15 and "holosystolic" in markdown(ROWS)


def test_the_command_prints_the_table(tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(lines(ROWS), encoding="utf-8")

    def run(where: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stetholm.corpus.synthesis.sample", where, "--count", "3"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(str(file))
    assert done.returncode == 0 and done.stdout.startswith("| task |") and done.stdout.count("\n") == 5
    missing = run(str(tmp_path / "none"))
    assert missing.returncode == 2 and "there is no file" in missing.stderr
