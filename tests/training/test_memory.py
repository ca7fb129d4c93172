"""Giving freed memory back."""

import subprocess
import sys

import pytest

PROBE = """
import os, psutil
from stetholm.training.memory import trim
me = psutil.Process()
held = [bytes(4096) + os.urandom(1) for _ in range(50_000)]  # 200 MB in small pieces
keep = held[::1000]
del held
before = me.memory_info().rss
trim()
print(before - me.memory_info().rss, len(keep))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is glibc's")
def test_freed_memory_goes_back_although_some_of_it_is_in_use():
    ran = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert int(ran.stdout.split()[0]) > 100 * 2**20
