"""The folder ``platform/`` does not shadow the standard library's module. Under ``ray job submit``: tests/e2e."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROBE = "import platform, stetholm; platform.system(); print(platform.__file__); print(stetholm.__file__)"


def test_the_folder_is_no_package():
    """With an __init__.py in it, a submitted Ray job hangs without an error."""
    assert (ROOT / "platform" / "stetholm" / "__init__.py").exists()
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", PROBE],  # sys.path[0] is the current directory
        ["-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {PROBE}"],
        ["-c", f"import sys; sys.path.append({str(ROOT)!r}); {PROBE}"],
    ],
)
def test_the_standard_librarys_platform_wins_in_the_repository(arguments):
    ran = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    standard, ours = ran.stdout.split()
    assert ROOT not in Path(standard).parents
    assert ours.endswith("stetholm/__init__.py")
