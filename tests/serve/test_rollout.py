"""The endpoint while it is changed: on Ray Serve, under load, asked once and never again."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
import psutil
import pytest

from benchmarks.serve_faults import LONG, Endpoint, change, endpoint, kill, scale, under
from benchmarks.serve_siege import Siege
from serve.canary import drawn
from serve.versions import DEPLOYMENT
from stetholm.errors import UserError
from stetholm.serving.vllm_start import vllm_installed
from stetholm.settings import VersionSettings
from stetholm.storage import Storage
from tests.serving.tiny import save_tiny

pytestmark = pytest.mark.long
FIRST, SECOND = "stetholm/serve-test/sft", "stetholm/serve-second/sft"
REQUESTS = 400


@pytest.fixture
def models(tiny_checkpoint: str, second_checkpoint: str) -> tuple[str, str]:
    return tiny_checkpoint, second_checkpoint


@pytest.fixture
def two(ray_cluster: None, storage: Storage, models: tuple[str, str]) -> Iterator[Endpoint]:
    """Two replicas of the first model."""
    with endpoint(models, storage, "serve.min_replicas=2", "serve.max_replicas=2") as where:
        yield where


def busiest(processes: Sequence[psutil.Process]) -> psutil.Process:
    """Which of them computes most, now."""
    before = [sum(one.cpu_times()[:2]) for one in processes]
    time.sleep(0.5)
    done = [sum(one.cpu_times()[:2]) - start for one, start in zip(processes, before, strict=True)]
    return processes[done.index(max(done))]


def streamed(where: Endpoint, then: Callable[[], None], **more: object) -> tuple[dict[int, tuple[str, str]], object]:
    """Texts, finish reasons and usage of a streamed answer; ``then`` is called when some of it has come."""
    found: dict[int, str] = {}
    ends: dict[int, str] = {}
    usage, pieces = None, 0
    body = {"model": "stetholm", "messages": [{"role": "user", "content": "Normal?"}], **more}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", f"{where.url}/v1/chat/completions", json=body, timeout=180) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            for choice in event["choices"]:
                found[choice["index"]] = found.get(choice["index"], "") + choice["delta"]["content"]
                ends[choice["index"]] = choice["finish_reason"]
            usage, pieces = event.get("usage"), pieces + 1
            if pieces == 10:
                then()
    return {index: (text, ends[index]) for index, text in found.items()}, usage


def ask(where: Endpoint, id: str = "", **more: object) -> httpx.Response:
    body = {"model": "stetholm", "messages": [{"role": "user", "content": "Normal?"}], "max_tokens": 2, **more}
    headers = {"X-Request-ID": id} if id else {}
    return httpx.post(f"{where.url}/v1/chat/completions", json=body, headers=headers, timeout=180)


def test_a_change_of_the_model_and_a_killed_replica_fail_no_request(two):
    changed = under(change, two, REQUESTS)
    assert changed.failed() == [] and set(changed.models()) == {FIRST, SECOND}
    assert {one.model for one in changed.outcomes[-20:]} == {SECOND}
    killed = under(kill(DEPLOYMENT), two, REQUESTS, tokens=LONG)  # many streams are in their middle
    assert killed.failed() == []


def test_a_stream_goes_on_where_a_killed_replica_left_it(ray_cluster, storage, models):
    fixed = ["serve.min_replicas=2", "serve.max_replicas=2", "engine.dtype=fp32", "serve.max_new_tokens=1500"]
    with endpoint(models, storage, *fixed) as where:
        how = {"max_tokens": 1500, "temperature": 0.1, "seed": 3, "n": 2}
        whole = ask(where, **how).json()
        killed: list[int] = []

        def lose() -> None:
            replica = busiest(where.processes(DEPLOYMENT))
            replica.kill()
            killed.append(replica.pid)

        choices, usage = streamed(where, lose, **how)
        assert choices == {one["index"]: (one["message"]["content"], one["finish_reason"]) for one in whole["choices"]}
        assert usage == whole["usage"] and killed


@pytest.mark.skipif(not vllm_installed(), reason="NO VLLM HERE: THE DEATH OF ITS PROCESS IS NOT TESTED")
def test_the_death_of_vllms_process_fails_no_request(ray_cluster, storage, tmp_path):
    uri = storage.join("runs", "serve-vllm", "sft", "checkpoint")
    storage.upload_dir(save_tiny(tmp_path, head_dim=32), uri)
    fixed = ["serve.min_replicas=2", "serve.max_replicas=2", "serve.engine=vllm", "engine.threads=1"]
    with endpoint((uri, uri), storage, *fixed, "engine.kv_cache_bytes=67108864", "engine.max_num_seqs=8") as where:

        def cores() -> list[psutil.Process]:
            below = [one for replica in where.processes(DEPLOYMENT) for one in replica.children(recursive=True)]
            return [one for one in below if "EngineCore" in " ".join(one.cmdline())]

        def lose(siege: Siege, where: Endpoint) -> None:
            core = busiest(cores())
            replica = core.parent()
            core.kill()
            siege.wait_until(lambda: not replica.is_running())
            siege.wait_until(lambda: where.replicas() == 2 and len(where.processes(DEPLOYMENT)) == 2, 400)

        assert under(lose, where, REQUESTS, tokens=LONG).failed() == []


def test_replicas_come_and_go_without_a_failed_request(ray_cluster, storage, models):
    elastic = ["serve.min_replicas=1", "serve.max_replicas=2", "serve.target_ongoing_requests=1"]
    with endpoint(models, storage, *elastic, "serve.upscale_delay_s=0", "serve.downscale_delay_s=1") as where:
        assert under(scale, where, REQUESTS).failed() == []


def test_a_change_that_does_not_come_up_leaves_the_old_model_answering(two, storage):
    broken = storage.join("runs", "broken", "sft", "checkpoint")
    storage.write_text(f"{broken}/config.json", "{}")

    def fail(siege: object, where: Endpoint) -> None:
        with pytest.raises(UserError, match="the old model answers"):
            where.deploy(model=broken)

    siege = under(fail, two, REQUESTS)
    assert siege.failed() == [] and set(siege.models()) == {FIRST}


def test_an_answer_that_was_begun_ends_on_the_model_that_began_it(two):
    got: list[str] = []

    def listen() -> None:
        body = {"model": "stetholm", "messages": [{"role": "user", "content": "Long?"}], "stream": True}
        with httpx.stream("POST", f"{two.url}/v1/chat/completions", json=body, timeout=180) as response:
            for line in response.iter_lines():
                got.append(line)
                begun.set()

    begun = threading.Event()
    two.deploy(max_new_tokens=1500)
    listener = threading.Thread(target=listen)
    listener.start()
    assert begun.wait(120)
    two.deploy(model=two.models[1])
    assert ask(two).json()["model"] == SECOND
    listener.join(180)
    assert not listener.is_alive()
    events = [json.loads(line.removeprefix("data: ")) for line in got if line.startswith("data: {")]
    assert "data: [DONE]" in got and events[-1]["choices"][0]["finish_reason"] in ("length", "stop")
    assert {event["model"] for event in events} == {FIRST}


def test_versions_a_canary_and_its_promotion(ray_cluster, storage, models):
    with endpoint(models, storage, "serve.max_replicas=1", f"serve.versions.next={models[1]}") as where:
        names = [one["id"] for one in httpx.get(f"{where.url}/v1/models", timeout=60).json()["data"]]
        assert names == ["stetholm", "next", FIRST, SECOND]
        asked = {name: ask(where, model=name) for name in [*names, "other"]}
        assert [asked[name].json()["model"] for name in names] == [FIRST, SECOND, FIRST, SECOND]
        assert asked["other"].status_code == 404

        where.deploy(canary="next", canary_share=0.5)
        ids = [f"request-{number}" for number in range(40)]
        inside, met = next(id for id in ids if drawn(id, 0.5)), 0
        deadline = time.monotonic() + 120
        while met < 20:  # each ingress replica looks for the canary first
            assert time.monotonic() < deadline
            met = met + 1 if ask(where, inside).json()["model"] == SECOND else 0
        assert [ask(where, id).json()["model"] for id in ids] == [SECOND if drawn(id, 0.5) else FIRST for id in ids]
        assert {ask(where, id, model=FIRST).json()["model"] for id in ids[:8]} == {FIRST}

        def promote(siege: object, where: Endpoint) -> None:
            where.deploy(model=models[1], versions={}, canary=None, canary_share=0.0)

        siege = under(promote, where, REQUESTS)
        assert siege.failed() == [] and {one.model for one in siege.outcomes[-20:]} == {SECOND}


def test_a_model_may_sleep_and_is_not_held_awake(ray_cluster, storage, models):
    with endpoint(models, storage, "serve.min_replicas=0", "serve.downscale_delay_s=1") as where:
        statuses = [httpx.get(f"{where.url}/readyz", timeout=60).status_code]
        deadline = time.monotonic() + 120
        while where.replicas():
            assert time.monotonic() < deadline
            statuses.append(httpx.get(f"{where.url}/readyz", timeout=60).status_code)
        assert set(statuses) == {200}
        assert httpx.get(f"{where.url}/v1/models", timeout=60).json()["data"][0]["id"] == "stetholm"
        assert where.replicas() == 0
        assert ask(where).json()["model"] == FIRST and where.replicas() == 1


def test_what_takes_too_long_or_is_too_much_is_503_with_retry_after(ray_cluster, storage, models):
    tight = ["serve.max_replicas=1", "serve.target_ongoing_requests=1", "serve.request_timeout_s=0.3"]
    with endpoint(models, storage, *tight, "serve.max_new_tokens=4000") as where:
        late = ask(where, max_tokens=4000)
        assert late.status_code == 503 and late.json()["error"]["code"] == "timeout"
        where.deploy(request_timeout_s=60.0, max_queued_requests=1)

        async def crowd() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=180) as client:
                body = {"model": "stetholm", "messages": [{"role": "user", "content": "Hm?"}], "max_tokens": 400}
                url = f"{where.url}/v1/chat/completions"
                return await asyncio.gather(*(client.post(url, json=body) for _ in range(16)))

        refused = [one for one in asyncio.run(crowd()) if one.status_code != 200]
        assert refused and {one.status_code for one in refused} == {503}
        assert all(one.headers["retry-after"].isdigit() for one in [late, *refused])


def test_bounds_of_a_version_are_its_own(ray_cluster, storage, models):
    with endpoint(models, storage, "serve.max_replicas=1") as where:
        where.deploy(versions={"next": VersionSettings(model=models[1], min_replicas=0)})
        assert ask(where, model="next").json()["model"] == SECOND
