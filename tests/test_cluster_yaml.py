"""The repository's cluster.yaml: valid for Ray, valid for us, and nothing in it stands in the way of --set."""

import yaml

from stetholm.settings import Settings, load_settings
from stetholm.settings.load import setting_keys
from tests.conftest import ROOT

FILE = ROOT / "cluster.yaml"


def test_ray_accepts_it_as_a_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(FILE.read_text()))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_it_leaves_the_embedded_defaults_in_force():
    settings = load_settings(FILE, environ={})
    assert settings == Settings()
    assert not any(stage.model_fields_set for stage in (settings.train, settings.align, settings.sft, settings.dpo))


def test_the_settings_shown_in_its_comments_exist():
    """Uncommenting all of it gives valid settings."""
    lines = FILE.read_text().split("  # What only Kubernetes")[0].splitlines()
    start = lines.index("  stetholm:") + 1
    shown = [line.replace("# ", "", 1) if is_setting(line) else line for line in lines[start:]]
    tree = yaml.safe_load("\n".join(without_duplicates(shown)))
    keys = {f"{section}.{key}" for section, body in tree.items() for key in body}
    assert len(keys) > 30
    sections = {key.rpartition(".")[0] for key in setting_keys()}
    assert keys <= set(setting_keys()) | sections


def is_setting(line: str) -> bool:
    """A commented line like ``# key: value``, with the value in lower case, unlike prose."""
    head, colon, _ = line.strip().removeprefix("#").strip().partition(":")
    return line.strip().startswith("#") and bool(colon) and head.replace("_", "").isalpha() and head.islower()


def without_duplicates(lines: list[str]) -> list[str]:
    """Without the second of two lines of the same key and depth in a section (storage.uri is shown twice)."""
    return [line for line in lines if "uri: s3://my-bucket" not in line]
