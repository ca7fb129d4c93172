"""A local HTTP server in the manner of OpenAI's, which answers as a test wants it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server answers; status None: it hangs up without a word."""

    status: int | None
    data: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0


def reply(text: str, wait: float = 0.0) -> Reply:
    """A chat completion."""
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    return Reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"}, wait)


@dataclass
class Server:
    """What a test may know of the server."""

    url: str
    seen: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def endpoint(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[Server]:
    """Serve ``answer(request body, number of the request)`` on a port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.seen)
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.seen.append({"path": self.path, "headers": headers, "body": body})
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                self._send(answer(body, number))
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has given up waiting
            finally:
                with server.lock:
                    server.at_once -= 1

        def _send(self, what: Reply) -> None:
            time.sleep(what.wait)
            if what.status is None:
                self.close_connection = True
                return
            self.send_response(what.status)
            for name, value in {**what.headers, "Content-Length": str(len(what.data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(what.data)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
