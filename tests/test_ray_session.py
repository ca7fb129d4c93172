"""A job's Ray connection: joins what is there, starts its own otherwise, ends only what it began."""

import os
import subprocess
import sys

import pytest

from stetholm.ray_session import ray_session


def test_an_initialised_ray_is_used_and_left_alone(ray_cluster):
    import ray
    import ray.data

    before = ray.get_runtime_context().get_node_id()
    with ray_session():
        assert ray.get_runtime_context().get_node_id() == before
        assert not ray.data.DataContext.get_current().enable_progress_bars
    assert ray.is_initialized()


def test_a_plain_process_gets_a_ray_of_its_own_and_joins_one_by_address(ray_cluster, tmp_path):
    """One process, in turn: its own Ray (token authentication and all), then the tests' cluster by RAY_ADDRESS."""
    import ray

    code = """
import os, ray
from stetholm.ray_session import ray_session
with ray_session():
    own, cpus = ray.get_runtime_context().get_node_id(), ray.cluster_resources()["CPU"]
    assert ray.get(ray.remote(lambda: 42).remote()) == 42
assert not ray.is_initialized() and cpus >= 4
os.environ["RAY_ADDRESS"] = os.environ["THEIRS"]
with ray_session():
    assert ray.get_runtime_context().get_node_id() == os.environ["NODE"] != own
    # Detached, so they must not lie where a training worker asks for them first: that node would never leave.
    assert {"datasets_stats_actor", "AutoscalingCoordinator"} <= {
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)
    }
assert not ray.is_initialized()
print("fine")
"""
    context = ray.get_runtime_context()
    environ = {**os.environ, "THEIRS": context.gcs_address, "NODE": context.get_node_id()}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.strip().endswith("fine"), ran.stderr
    assert ray.is_initialized() and ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()) == 1


@pytest.mark.long
def test_a_stream_left_half_read_does_not_keep_the_process(ray_cluster, storage, tmp_path):
    """An exception in mid-stream keeps the generator in its traceback until the interpreter ends."""
    from stetholm.corpus.shards import write_corpus
    from tests.corpus.sounds import rows

    uri = storage.join("test-half-read")
    write_corpus(storage, uri, {"train": rows(300)}, inputs={}, row_group_rows=16)
    code = """
import sys
from stetholm.corpus.stream import CorpusStream
from stetholm.ray_session import ray_session
from stetholm.settings import StorageSettings
from stetholm.storage import open_storage
with ray_session():
    stream = CorpusStream(open_storage(StorageSettings()), sys.argv[1], split="train", seed=0, epochs=50).rows()
    next(stream)
    raise RuntimeError("in the middle")
"""
    command = [sys.executable, "-c", code, uri]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 1 and "in the middle" in ran.stderr
