"""A cluster file to change and render again."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stetholm.cluster import Kind, read_cluster, render
from tests.conftest import ROOT

Change = Callable[[dict[str, Any]], None]
Rendering = Callable[..., str]


@pytest.fixture
def rendered(tmp_path: Path) -> Rendering:
    """``rendered(kind, change)``: the text of a rendering of cluster.yaml after ``change`` of its tree."""
    file = yaml.safe_load((ROOT / "cluster.yaml").read_text())

    def make(kind: Kind, change: Change = lambda tree: None, job: str = "pipeline") -> str:
        tree = copy.deepcopy(file)
        tree["metadata"]["stetholm"]["storage"] = {"uri": "s3://bucket/prefix"}
        tree["metadata"]["stetholm"]["serve"] = {"api_keys_file": "/etc/stetholm/keys"}
        change(tree)
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(tree))
        return render(read_cluster(path, environ={}), kind, job)

    return make
