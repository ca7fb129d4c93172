"""The catalogue tells what is known of each recording."""

from stetholm.corpus.catalog import by_recording


def row(
    recording: str, filename: str, labels: dict[str, str] | None, events: list[dict[str, object]] | None = None
) -> dict[str, object]:
    return {"recording_id": recording, "filename": filename, "labels": labels, "events": events}


def test_the_latest_row_that_knows_what_a_recording_is() -> None:
    rows = [
        row("a", "old", {"finding": "wheezes"}),
        row("a", "new", {"finding": "crackles"}),
        row("a", "listed elsewhere", None, []),
        row("b", "unlabelled", None),
        row("b", "renamed", {}),
        row("c", "plain", None),
        row("c", "timed", None, [{"start": 0.0, "end": 1.0, "label": "S1"}]),
    ]
    found = by_recording(rows)
    assert {name: known["filename"] for name, known in found.items()} == {"a": "new", "b": "renamed", "c": "timed"}
