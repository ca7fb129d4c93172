"""The Ray Serve application: HTTP in front of ``stetholm.serving``."""

import os

import stetholm  # noqa: F401  (sets what Ray reads when it is first imported)

# Serve's logs, one line a request, stay in Ray's session folder and off the terminal.
os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
# What Serve puts before its HTTP server.
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.edge:middlewares")
