"""Following the processes that the demo starts."""

import os
import subprocess
import sys

import psutil

from stetholm.demo.footprint import Footprint

SLEEP = "import time; time.sleep(60)"
ORPHAN = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}], stdout=subprocess.DEVNULL).pid, flush=True)
input()
"""
HOLD = f"held = bytearray(b'x') * (64 << 20); print(1, flush=True); {SLEEP}"


def test_memory_of_descendants_counts():
    footprint = Footprint()
    alone = footprint.look()
    child = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert footprint.look() > alone + (48 << 20)
        assert footprint.peak_bytes >= alone
    finally:
        child.kill()
        child.communicate()


def test_a_grandchild_whose_parent_has_gone_is_still_known_and_ended():
    footprint = Footprint()
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    footprint.look()
    parent.communicate("\n")
    assert orphan in [process.pid for process in footprint.left()]
    footprint.end_left()
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE
    assert psutil.pid_exists(os.getpid())


def test_what_ran_before_is_neither_counted_nor_ended():
    older = subprocess.Popen([sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert older.stdout is not None
    try:
        child = int(older.stdout.readline())
        footprint = Footprint()
        assert footprint.end_left() == []
        assert psutil.Process(child).is_running() and older.poll() is None
    finally:
        psutil.Process(child).kill()
        older.communicate("\n")
