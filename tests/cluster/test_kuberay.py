"""KubeRay's manifests against the fields that KubeRay has, from a list that was not made from our own classes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stetholm.cluster import KINDS, read_cluster, render
from tests.conftest import ROOT

FIELDS = yaml.load(Path(__file__).with_name("kuberay_fields.yaml").read_text(), yaml.BaseLoader)
KUBERAY = ("raycluster", "rayjob", "rayservice")
REDIS = ROOT / "platform/stetholm/presets/cluster-redis.yaml"
PLAIN = {"core": {"type": "object"}, "strings": {"type": "object", "additionalProperties": {"type": "string"}}}


def schema(kind: str) -> dict[str, Any]:
    """A JSON Schema of a resource, which refuses fields that are not in the list."""
    return {"$ref": f"#/$defs/{kind}", "$defs": {name: of_type(fields) for name, fields in FIELDS.items()}}


def of_type(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name.rstrip("!"): of_field(what) for name, what in fields.items()},
        "required": [name.rstrip("!") for name in fields if name.endswith("!")],
        "additionalProperties": False,
    }


def of_field(what: str | list[str]) -> dict[str, Any]:
    if isinstance(what, list):
        return {"enum": what}
    name, _, many = what.partition(" ")
    one = PLAIN.get(name) or ({"$ref": f"#/$defs/{name}"} if name in FIELDS else {"type": name})
    return {"type": "array", "items": one} if many else one


def manifest(kind: Any, *settings: str) -> dict[str, Any]:
    """Of cluster.yaml, with all that can be in it: Redis too."""
    ours = ["storage.uri=s3://bucket/prefix", "serve.api_keys_file=/etc/stetholm/keys", *settings]
    rendered: dict[str, Any] = yaml.safe_load(render(read_cluster(ROOT / "cluster.yaml", ours, [REDIS], {}), kind))
    return rendered


@pytest.mark.parametrize("kind", KUBERAY)
def test_every_field_is_one_of_kuberays(kind: str) -> None:
    made = manifest(kind)
    assert not [error.message for error in jsonschema.Draft202012Validator(schema(made["kind"])).iter_errors(made)]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("authOption",), {"mode": "token"}, "authOption"),
        (("authOptions", "mode"), "tokens", "tokens"),
        (("workerGroupSpecs", 0, "idleTimeoutS"), 5, "idleTimeoutS"),
        (("workerGroupSpecs", 0, "idleTimeoutSeconds"), "5", "not of type 'integer'"),
        (("workerGroupSpecs", 0, "labels"), {"stetholm.role": 1}, "not of type 'string'"),
    ],
)
def test_the_list_refuses_what_kuberay_does_not_have(path: tuple[Any, ...], value: Any, said: str) -> None:
    made = copy.deepcopy(manifest("raycluster"))
    *above, last = path
    part = made["spec"]
    for step in above:
        part = part[step]
    part[last] = value
    with pytest.raises(jsonschema.ValidationError, match=said):
        jsonschema.Draft202012Validator(schema("RayCluster")).validate(made)


def test_there_is_a_schema_for_each_kind_that_is_applied_to_kubernetes() -> None:
    assert set(KUBERAY) <= set(KINDS)
    assert {manifest(kind)["kind"] for kind in KUBERAY} <= set(FIELDS)
