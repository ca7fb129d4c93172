"""What a model replica raises, on Ray Serve: nothing of it that a user has written is in any log."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import ray
from ray import serve

from serve.app import StethoLM
from serve.quiet import ReplicaError, quiet
from stetholm.serving.engine import RequestError

WORDS = "secret words about a patient's heart"


@serve.deployment
class Careless:
    """A replica whose errors repeat what it was asked."""

    @quiet
    async def complete(self, text: str) -> str:
        try:
            return {"known": "answer"}[text]
        except KeyError as error:
            raise ValueError(f"cannot answer {text}") from error

    @quiet
    async def stream(self, text: str) -> AsyncIterator[str]:
        yield "begun"
        raise ValueError(f"cannot answer {text}")

    @quiet
    async def refuse(self, text: str) -> None:
        try:
            int(text)
        except ValueError as error:
            raise RequestError("the prompt has 9 tokens too many") from error


@pytest.fixture
def careless(ray_cluster: None) -> Iterator[serve.handle.DeploymentHandle]:
    serve.start(proxy_location="Disabled")
    yield serve.run(Careless.bind(), name="careless", route_prefix=None)
    serve.shutdown()


def test_errors_of_replicas_tell_kind_and_place_and_no_text(careless):
    with pytest.raises(ReplicaError, match=r"ValueError in complete \(.*test_quiet.py:\d+\)") as whole:
        careless.complete.remote(WORDS).result()
    pieces = []
    with pytest.raises(ReplicaError, match="ValueError in stream") as streamed:
        pieces.extend(careless.options(stream=True).stream.remote(WORDS))
    with pytest.raises(RequestError, match="9 tokens too many") as refused:
        careless.refuse.remote(WORDS).result()
    assert careless.complete.remote("known").result() == "answer" and pieces in ([], ["begun"])
    assert not any(WORDS in str(error.value) for error in (whole, streamed, refused))
    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    logs = {path: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}
    assert any("ReplicaError" in text and "Request failed" in text for text in logs.values())
    assert [path for path, text in logs.items() if WORDS in text] == []


def test_every_method_of_a_model_replica_that_gets_a_request_is_quiet():
    methods = vars(StethoLM.func_or_class)
    assert all(hasattr(methods[name], "__wrapped__") for name in ("stream", "complete", "explain"))
