"""Several models side by side, and a canary's share: who is asked, and what is refused before anything starts."""

import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.app import build
from serve.backend import EngineBackend
from serve.canary import drawn
from serve.http import create_app
from serve.keys import ApiKeys
from serve.service import Served, Service
from serve.versions import versions_of
from stetholm.cluster.explicit import pairs
from stetholm.errors import UserError
from stetholm.serving.identity import ModelCard
from stetholm.settings import AudioSettings, ServeSettings, Settings, load_settings
from tests.serve.conftest import CARD

OTHER = ModelCard(id="stetholm/other/dpo", checkpoint="s3://b/runs/other/dpo/checkpoint")


def chosen(*more: str, gate: str = "if-there") -> Settings:
    return load_settings(None, [f"serve.gate={gate}", *more], {})


def test_versions_take_the_defaults_bounds_or_their_own(storage, tiny_checkpoint, second_checkpoint):
    settings = chosen(
        f"serve.model={tiny_checkpoint}",
        "serve.min_replicas=2",
        "serve.max_replicas=5",
        f"serve.versions.next={second_checkpoint}",
        f"serve.versions.v1.0={{model: '{second_checkpoint}', min_replicas: 0, max_replicas: 1}}",
    )
    default, following, old = versions_of(settings, storage)
    assert (default.deployment, following.deployment, old.deployment) == ("StethoLM", "StethoLM-next", "StethoLM-v1.0")
    assert (following.min_replicas, following.max_replicas, following.sleeps) == (2, 5, False)
    assert (old.min_replicas, old.max_replicas, old.sleeps) == (0, 1, True)
    assert old.autoscaling(settings.serve)["initial_replicas"] == 1
    assert following.card.id == "stetholm/serve-second/sft"


def test_versions_travel_in_a_deploy_config(second_checkpoint):
    settings = chosen(f"serve.versions.next={second_checkpoint}", "serve.canary=next", "serve.canary_share=0.1")
    assert load_settings(None, pairs(settings), {}).serve == settings.serve


def test_all_replicas_keep_to_the_nodes_with_the_labels(storage, tiny_checkpoint):
    applied = {}
    for more in ([], ["serve.label_selector.stetholm.role=server"]):
        ingress = build(chosen(f"serve.model={tiny_checkpoint}", *more), storage)._bound_deployment
        replicas = ingress.init_args[0]._bound_deployment
        applied[len(more)] = [one.ray_actor_options.get("label_selector") for one in (ingress, replicas)]
    assert applied == {0: [None, None], 1: [{"stetholm.role": "server"}] * 2}


@pytest.mark.parametrize(
    ("given_settings", "said"),
    [
        (["serve.canary=next"], "serve.canary: .*one of serve.versions: there are none"),
        (["serve.versions.stetholm=s3://b/x"], "serve.versions: .*the default model's name"),
        (["serve.versions.a b=s3://b/x"], "serve.versions.a b"),
        (["serve.versions.a=s3://b/x", "serve.canary_share=2"], "canary_share"),
    ],
)
def test_bad_versions_are_one_clear_line(given_settings, said):
    with pytest.raises(UserError, match=said) as caught:
        chosen(*given_settings)
    assert "\n" not in str(caught.value)


def test_every_version_must_have_passed_its_gate(storage, tiny_checkpoint, second_checkpoint):
    models = [f"serve.model={tiny_checkpoint}", f"serve.versions.next={second_checkpoint}"]
    with pytest.raises(UserError, match=r"no gate.json beside .*serve-test"):
        versions_of(load_settings(None, models, {}), storage)
    with pytest.raises(UserError, match="no checkpoint at s3://stetholm/nowhere"):
        versions_of(chosen(models[0], f"serve.versions.x={storage.join('nowhere')}"), storage)
    unsigned = storage.join("runs", "serve-unsigned", "sft", "checkpoint")
    storage.write_json(f"{unsigned}/config.json", {})
    storage.write_json(f"{unsigned}/gate.json", {"passed": False})
    models.append(f"serve.versions.next={unsigned}")
    with pytest.raises(UserError, match=r"serve-unsigned.*not a gate.json"):
        versions_of(chosen(*models), storage)
    assert len(versions_of(chosen(*models, gate="ignore"), storage)) == 2


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_wider_share_holds_the_narrower_one(name, one, other):
    low, high = sorted((one, other))
    assert drawn(name, high) >= drawn(name, low)
    assert drawn(name, 1.0) and not drawn(name, 0.0)


def test_the_share_is_what_was_asked_for():
    taken = sum(drawn(f"request-{number}", 0.1) for number in range(10_000))
    assert 900 < taken < 1100  # ten thousand hashes, which never change


def test_the_name_in_the_request_chooses(engine):
    served = [Served(CARD, EngineBackend(engine)), Served(OTHER, EngineBackend(engine), "next")]
    app = create_app(Service(served, ServeSettings(max_new_tokens=4), AudioSettings()), ServeSettings(), ApiKeys())

    async def ask() -> tuple[httpx.Response, dict[str, httpx.Response]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            body = {"messages": [{"role": "user", "content": "Normal?"}]}
            names = ["stetholm", "next", CARD.id, OTHER.id, "gpt-4o"]
            answers = {name: await client.post("/v1/chat/completions", json={**body, "model": name}) for name in names}
            return await client.get("/v1/models"), answers

    listed, answers = asyncio.run(ask())
    assert [model["id"] for model in listed.json()["data"]] == ["stetholm", "next", CARD.id, OTHER.id]
    unknown = answers.pop("gpt-4o")
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    assert [answer.json()["model"] for answer in answers.values()] == [CARD.id, OTHER.id, CARD.id, OTHER.id]
