"""The Ray Serve application: HTTP in front of ``stetholm.serving``."""

import os

import stetholm  # sets Ray's environment, so it comes before Ray

# Serve's logs, one line a request, stay in Ray's session folder and off the terminal.
os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")

__all__ = ["stetholm"]
