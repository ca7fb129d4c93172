"""The endpoint's own application on a port of this machine, without Ray Serve."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from serve.backend import EngineBackend
from serve.http import create_app
from serve.keys import ApiKeys
from serve.service import Served, Service
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.settings import AudioSettings, ServeSettings
from tests.serve.conftest import CARD
from tests.serve.test_app import free_port


@contextmanager
def serve_in_thread(engine: TransformersEngine, keys: ApiKeys) -> Iterator[str]:
    """Its URL, with a slash at the end."""
    settings = ServeSettings(max_new_tokens=64)
    service = Service([Served(CARD, EngineBackend(engine))], settings, AudioSettings())
    with listening(create_app(service, settings, keys)) as url:
        yield f"{url}/"


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """The URL of an app that a thread serves."""
    config = uvicorn.Config(app, port=free_port(), log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{config.port}"
    server.should_exit = True
    thread.join()
