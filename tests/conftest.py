"""What all tests share: a home of their own, the embedded storage, one small Ray, the real recordings if present."""

import os
from collections.abc import Iterator
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A test must not find the developer's own cluster, keys or settings.
for _name in list(os.environ):
    if _name == "RAY_ADDRESS" or _name.startswith(("AWS_", "STETHOLM_")):
        del os.environ[_name]

import hypothesis  # noqa: E402
import pytest  # noqa: E402

import stetholm.storage  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

# No test asserts how long something takes: a busy machine is no failure.
hypothesis.settings.register_profile("stetholm", deadline=None)
hypothesis.settings.load_profile("stetholm")


@pytest.fixture(scope="session", autouse=True)
def stetholm_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``$STETHOLM_HOME`` of the whole test session; the embedded server in it ends by itself after the session."""
    folder = tmp_path_factory.mktemp("stetholm-home")
    os.environ["STETHOLM_HOME"] = str(folder)
    yield folder
    del os.environ["STETHOLM_HOME"]


@pytest.fixture(scope="session")
def storage(stetholm_home: Path) -> stetholm.storage.Storage:
    """The embedded storage; tests take a prefix of their own, e.g. ``storage.join("test-ingest")``."""
    from stetholm.settings import StorageSettings

    return stetholm.storage.open_storage(StorageSettings())


@pytest.fixture(scope="session")
def ray_cluster(stetholm_home: Path) -> Iterator[None]:
    """One local Ray with four logical CPUs for all tests that ask for it."""
    import ray

    from stetholm.ray_session import ray_session

    with ray_session(num_cpus=4):
        assert ray.is_initialized()
        yield


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings beside the project; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "recordings"
    if not folder.is_dir():
        pytest.skip("no folder of real recordings beside the project")
    return folder
