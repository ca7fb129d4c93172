"""The Ray Serve application: HTTP in front of ``stetholm.serving``."""

import os

from stetholm.ray_session import QUIET

# Ray reads these when it is first imported, which this package's modules do.
# Serve's logs, one line a request, stay in Ray's session folder and off the terminal.
for _name, _value in {**QUIET, "RAY_SERVE_LOG_TO_STDERR": "0"}.items():
    os.environ.setdefault(_name, _value)
