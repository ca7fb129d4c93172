"""The Ray Serve application: HTTP in front of ``stetholm.serving``."""

import os

from stetholm.ray_session import QUIET

# Ray reads these when it is first imported, which this package's modules do.
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
