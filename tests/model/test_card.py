import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from stetholm.model.card import Card, hub_id, model_card

CONFIG = {
    "language_model": "google/medgemma-4b-it",
    "audio_encoder": "cola",
    "prefix_tokens": 4,
    "prompt_style": "plain",
    "weights": "adapter",
    "dtype": "bfloat16",
    "lora": {"default": {"r": 8, "alpha": 32, "dropout": 0.1}},
}
COUNTS = {
    "train": {"task": {"Report": 3, "Location": 4}, "dataset": {"icbhi": 7}, "distribution": {"ID": 7}},
    "test": {"task": {"Report": 2}, "dataset": {"kauh": 2}, "distribution": {"ID": 2}},
}
SFT = {
    "checkpoint": "s3://b/runs/demo/sft/checkpoint_5",
    "stage": "sft",
    "run": "demo",
    "parent": "s3://b/runs/demo/align/checkpoint_2",
    "corpus": "s3://b/corpus",
    "corpus_sha256": "c0ffee",
    "code": "0.1.0+g1a2b3c4",
    "counts": COUNTS,
    "settings": {"learning_rate": 5e-5, "epochs": 30.0, "max_steps": None, "tasks": ["Report"], "log_every": 5},
    "numbers": {"steps": 12, "loss, last": 0.123456},
}
ALIGN = {**SFT, "checkpoint": SFT["parent"], "stage": "align", "parent": None, "settings": {"learning_rate": 1e-3}}
TABLE = "**t**\n\n| | n |\n|---|---:|\n| Overall | 9 |\n| Overall, audio withheld | 9 |\n"


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> dict[str, list[str]]:
    """A table's rows by their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


def exported(**more: Any) -> Card:
    values: dict[str, Any] = {
        "kind": "adapter",
        "config": CONFIG,
        "lineage": [SFT, ALIGN],
        "checkpoint": SFT["checkpoint"],
        "evaluation": TABLE,
        **more,
    }
    return Card(**values)


def test_what_the_hub_reads() -> None:
    data = ModelCard(model_card(exported())).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "audio-text-to-text", "other")
    assert data.base_model == "google/medgemma-4b-it" and {"lora", "research-only"} <= set(data.tags)
    assert data.to_dict()["base_model_relation"] == "adapter"
    merged = ModelCard(model_card(exported(kind="merged", config={**CONFIG, "weights": "full", "lora": None}))).data
    assert merged.to_dict()["base_model_relation"] == "finetune" and "lora" not in merged.tags


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("google/medgemma-4b-it", "google/medgemma-4b-it"),
        ("/data/models/base", None),
        ("./base", None),
        ("~/base", None),
        ("s3://bucket/base", None),
        ("a/b/c", None),
        (None, None),
    ],
)
def test_only_hub_ids_are_named_as_the_base_on_the_hub(name: str | None, expected: str | None) -> None:
    assert hub_id(name) == expected
    head = model_card(exported(config={**CONFIG, "language_model": name})).split("---")[1]
    assert yaml.safe_load(head).get("base_model") == expected


def test_data_settings_metrics_and_lineage_are_all_there() -> None:
    found = sections(model_card(exported()))
    assert rows(found["Training data"]) == {
        "": ["train", "test"],
        "---": ["---:", "---:"],
        "all": ["7", "2"],
        "task: Location": ["4", "0"],
        "task: Report": ["3", "2"],
        "dataset: icbhi": ["7", "0"],
        "dataset: kauh": ["0", "2"],
    }
    assert "`s3://b/corpus` (stage align, sft)" in found["Training data"] and "c0ffee" in found["Training data"]
    training = rows(found["Training"])
    assert training[""] == ["align", "sft"] and training["`learning_rate`"] == ["0.001", "5e-05"]
    assert training["`tasks`"] == ["-", "Report"] and training["loss, last"] == ["0.1235", "0.1235"]
    assert not {"`max_steps`", "`log_every`"} & training.keys()
    assert "`default` r 8, alpha 32" in found["Training"]
    assert TABLE.strip() in found["Evaluation"] and "before it was exported" in found["Evaluation"]
    lineage = re.findall(r"^1\. (.+)$", found["Lineage"], flags=re.MULTILINE)
    assert [line.split(":")[0] for line in lineage[:1]] == ["exported (adapter) from `s3"]
    assert lineage[1].startswith(f"`{SFT['checkpoint']}`: stage sft, run demo, code")
    assert lineage[2].startswith(f"`{SFT['parent']}`: stage align")
    assert lineage[3].startswith("the language model `google/medgemma-4b-it`") and len(lineage) == 4
    assert "Not for clinical use" in found["Intended use"]


def test_what_is_not_known_is_said() -> None:
    text = model_card(Card("merged", {"weights": "full"}, evaluation=None, checkpoint="s3://b/x"))
    found = sections(text)
    assert found["Training data"].strip() == "Not recorded."
    assert "not recorded" in found["Training"] and "Not evaluated: the run has no finished" in found["Evaluation"]
    assert "what came before is not recorded" in found["Lineage"]
    other = sections(model_card(exported(lineage=[{**SFT, "counts": None, "corpus_sha256": None}], evaluation=None)))
    assert "How many pairs it held is not recorded" in other["Training data"]
    assert f"`{SFT['parent']}`, of which nothing more is recorded" in other["Lineage"]
    checkpoint = sections(model_card(Card("checkpoint", CONFIG, [SFT])))
    assert "Not evaluated when it was saved" in checkpoint["Evaluation"]
    nothing_before = sections(model_card(exported(lineage=[{"checkpoint": "s3://b/x"}])))
    assert "`s3://b/x`: nothing more is recorded" in nothing_before["Lineage"]


_NAMES = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.dictionaries(_NAMES, st.dictionaries(_NAMES, st.integers(0, 9), max_size=3), min_size=1, max_size=3), _NAMES)
def test_no_name_breaks_the_card(tasks: dict[str, dict[str, int]], name: str) -> None:
    counts = {split: {"task": by_task} for split, by_task in tasks.items()}
    text = model_card(
        exported(lineage=[{**SFT, "counts": counts, "run": name}], config={**CONFIG, "language_model": name})
    )
    yaml.safe_load(text.split("---\n")[1])
    table = [line for line in sections(text)["Training data"].split("\n") if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert columns == {len(counts) + 2}
