"""A tiny checkpoint in storage, and clients of an application in this process."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest

import serve  # before Ray, for whose environment it sets defaults
from serve.backend import Backend, EngineBackend
from serve.http import create_app
from serve.keys import ApiKeys
from serve.service import Served, Service
from stetholm.serving.identity import ModelCard
from stetholm.serving.transformers_engine import TransformersEngine
from stetholm.settings import AudioSettings, ServeSettings
from stetholm.storage import Storage
from tests.serving.tiny import save_tiny, tiny_model

CARD = ModelCard(id="stetholm/test/sft", checkpoint="s3://b/runs/test/sft/checkpoint", lineage={"parent": None})
ClientMaker = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]

assert serve


@pytest.fixture(scope="session")
def tiny_checkpoint(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a checkpoint of random weights, the output of stage sft of run ``serve-test``."""
    uri = storage.join("runs", "serve-test", "sft", "checkpoint")
    folder = save_tiny(tmp_path_factory.mktemp("tiny"))
    (folder / "lineage.json").write_text('{"parent": "s3://stetholm/runs/serve-test/align/checkpoint"}')
    storage.upload_dir(folder, uri)
    return uri


@pytest.fixture(scope="session")
def second_checkpoint(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another one, of run ``serve-second``."""
    uri = storage.join("runs", "serve-second", "sft", "checkpoint")
    storage.upload_dir(save_tiny(tmp_path_factory.mktemp("second"), seed=1), uri)
    return uri


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(*tiny_model())
    yield engine
    engine.close()


@pytest.fixture
def client_of(engine: TransformersEngine) -> ClientMaker:
    """``async with client_of(keys=…, backend=…, max_new_tokens=…) as client``."""

    @asynccontextmanager
    async def make(
        keys: ApiKeys = ApiKeys(),  # noqa: B008 (immutable)
        backend: Backend | None = None,
        **options: object,
    ) -> AsyncIterator[httpx.AsyncClient]:
        settings = ServeSettings(**{"max_new_tokens": 16, **options})
        service = Service([Served(CARD, backend or EngineBackend(engine))], settings, AudioSettings(max_seconds=30))
        transport = httpx.ASGITransport(create_app(service, settings, keys))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            yield client

    return make
