"""The figures of an inspection as tables: short ones with rich on the terminal, whole ones in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stetholm.audio.features import CLIP_SECONDS
from stetholm.corpus.suspicions import shorten

WIDTH = 100
"""Columns of the terminal that the tables need at most."""
TABLE_ROWS = 24
"""Most rows of a table on the terminal."""
VALUES, ALL_VALUES = 6, 40
"""Most values of a label on the terminal, and in Markdown."""
DATASETS = 5
"""Of more datasets the terminal shows recordings by dataset only, not by split as well."""
ALL = "all"

Row = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        title: what it is about.
        header: names of the columns; the first ``texts`` of them hold text, the others numbers.
        blocks: rows that belong together.
        texts: how many columns hold text.
    """

    title: str
    header: Row
    blocks: list[list[Row]] = field(default_factory=list)
    texts: int = 1


def sections(figures: Mapping[str, Any], *, brief: bool) -> Iterator[Section]:
    """All tables that have rows.

    Args:
        figures: of :func:`stetholm.corpus.inspection.figures`.
        brief: for the terminal, with less detail.
    """
    splits = figures["splits"]
    made = (
        Section("Pairs", ("", *splits, ALL), list(_pairs(figures))),
        Section(
            "Recordings and their seconds",
            ("dataset", "split", "recordings", "patients", "hours", "min", "median", "95 %", "max",
             f"> {CLIP_SECONDS:g} s"),
            list(_recordings(figures, brief)), texts=2,
        ),
        Section("Sampling rates", ("Hz", *splits), [_by_split(figures["sampling_rates"], splits)]),
        Section(
            "Labels (recordings)", ("label", "value", *splits),
            list(_labels(figures, VALUES if brief else ALL_VALUES)), texts=2,
        ),
        Section("Status by dataset", ("dataset", *_statuses(figures)), [_status(figures)]),
        Section(
            "Events (and recordings with one)",
            ("label", "events", f"in first {CLIP_SECONDS:g} s", "mean s", *splits), [_events(figures)],
        ),
        Section("Answers", ("split", "task", "commonest answer", "share", "answers", "questions", "pairs"),
                list(_answers(figures)), texts=3),
        Section("Left out by ingest", ("reason", "pairs"),
                [[(reason, _whole(count)) for reason, count in figures["rejects"].items()]]),
    )  # fmt: skip
    yield from (section for section in made if any(section.blocks))


def headline(figures: Mapping[str, Any]) -> str:
    """How much the corpus holds, in a line."""
    return (
        f"{figures['pairs']:,} pairs about {figures['recordings']:,} recordings of {figures['patients']:,} patients, "
        f"{_hours(figures['hours'])} hours"
    )


def note(figures: Mapping[str, Any]) -> str | None:
    """What the tables cannot show, if anything."""
    if figures["catalogue"]:
        return None
    return "no catalogue: labels, events and file names are unknown (a stage wrote this corpus, not ingest)"


def to_markdown(figures: Mapping[str, Any], sheet: str) -> str:
    """All tables, the warnings first.

    Args:
        figures: of :func:`stetholm.corpus.inspection.figures`.
        sheet: path of the picture, seen from the Markdown file.
    """
    lines = [f"# {figures['corpus']}", "", f"{headline(figures)}. Made {figures['created']}.", ""]
    if said := note(figures):
        lines += [f"{said[0].upper()}{said[1:]}.", ""]
    lines += ["## Warnings", "", *(f"- {_cell(text)}" for text in figures["warnings"] or ["none"]), ""]
    for section in sections(figures, brief=False):
        rule = "---|" * section.texts + "---:|" * (len(section.header) - section.texts)
        rows = [row for block in section.blocks for row in block]
        lines += [f"## {section.title}", "", _line(section.header), f"|{rule}", *map(_line, rows), ""]
    return "\n".join([*lines, "## Spectrograms", "", f"![Spectrograms with labels and events]({sheet})", ""])


def print_tables(figures: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables, then the warnings, at most ``WIDTH`` columns wide."""
    console = console or Console(highlight=False)
    # In a log rich would assume 80 columns.
    console.width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    console.print(f"[bold]{escape(figures['corpus'])}[/]\n{headline(figures)}", soft_wrap=True)
    if said := note(figures):
        console.print(said, soft_wrap=True)
    for section in sections(figures, brief=True):
        console.print()
        console.print(_table(section))
    warnings = figures["warnings"]
    console.print(f"\n[bold]{len(warnings)} warning{'' if len(warnings) == 1 else 's'}[/]")
    for text in warnings:
        console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=not console.is_terminal)


def _table(section: Section) -> Table:
    table = Table(
        title=section.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False,
        collapse_padding=True,
    )  # fmt: skip
    for index, name in enumerate(section.header):
        text = index < section.texts
        table.add_column(name, justify="left" if text else "right", no_wrap=True, overflow="ellipsis")
    rows = [(row, row is block[-1]) for block in section.blocks for row in block]
    for row, last in rows[:TABLE_ROWS]:
        table.add_row(*map(escape, row), end_section=last)
    if len(rows) > TABLE_ROWS:
        table.caption = f"… {len(rows) - TABLE_ROWS} more rows in inspection.md"
        table.caption_justify = "left"
    return table


def _pairs(figures: Mapping[str, Any]) -> Iterator[list[Row]]:
    splits = figures["splits"]
    for counts in figures["pairs_by"].values():
        yield [
            (value, *(_whole(by_split[split]) for split in splits), _whole(sum(by_split.values())))
            for value, by_split in counts.items()
        ]


def _recordings(figures: Mapping[str, Any], brief: bool) -> Iterator[list[Row]]:
    groups = figures["recordings_by"]
    by_dataset = brief and len(groups) - 1 > DATASETS
    for dataset, by_split in groups.items():
        if dataset == ALL and len(groups) == 2:
            continue  # the only dataset tells it all
        chosen = [ALL] if by_dataset and dataset != ALL else [*by_split]
        if len(by_split) == 2 and not by_dataset:
            chosen.remove(ALL)  # the only split tells it all
        yield [("" if number else dataset, split, *_amounts(by_split[split])) for number, split in enumerate(chosen)]


def _amounts(found: Mapping[str, Any]) -> Row:
    seconds = ("-" if found[key] is None else f"{found[key]:.1f}" for key in ("min", "median", "p95", "max"))
    longer = found["longer_than_clip"]
    return (
        _whole(found["recordings"]), _whole(found["patients"]), _hours(found["hours"]), *seconds,
        "-" if longer is None else _whole(longer),
    )  # fmt: skip


def _by_split(counts: Mapping[str, Mapping[str, int]], splits: list[str]) -> list[Row]:
    return [(value, *(_whole(by_split[split]) for split in splits)) for value, by_split in counts.items()]


def _labels(figures: Mapping[str, Any], most: int) -> Iterator[list[Row]]:
    splits = figures["splits"]
    for name, label in figures["labels"].items():
        values = label["values"]
        totals = {split: sum(by_split[split] for by_split in values.values()) for split in splits}
        rows = [
            (value, *(_share(by_split[split], totals[split]) for split in splits)) for value, by_split in values.items()
        ]
        if len(rows) > most:
            left = list(values.values())[most - 1 :]
            rest = (_share(sum(by_split[split] for by_split in left), totals[split]) for split in splits)
            rows = [*rows[: most - 1], (f"… {len(left)} more", *rest)]
        if len(values) > 2:
            rarest = label["rarest_share"]
            rows.append((f"rarest of {len(values)}", *(_percent(rarest[split]) for split in splits)))
        yield [("" if number else name, shorten(row[0], 40), *row[1:]) for number, row in enumerate(rows)]
    if figures["labels"] and any(figures["unlabelled"].values()):
        yield [("no label", "", *(_whole(figures["unlabelled"][split]) for split in splits))]


def _statuses(figures: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(status for counts in figures["status_by_dataset"].values() for status in counts))


def _status(figures: Mapping[str, Any]) -> list[Row]:
    by_dataset = figures["status_by_dataset"]
    if len(by_dataset) < 2:
        return []  # the labels have told it
    statuses = _statuses(figures)
    return [
        (name, *(_share(counts[status], sum(counts.values())) for status in statuses))
        for name, counts in by_dataset.items()
    ]


def _events(figures: Mapping[str, Any]) -> list[Row]:
    return [
        (
            shorten(label, 40), _whole(found["events"]), _whole(found["in_clip"]),
            f"{found['seconds'] / found['events']:.2f}",
            *(_whole(found["recordings"].get(split, 0)) for split in figures["splits"]),
        )
        for label, found in figures["events"].items()
    ]  # fmt: skip


def _answers(figures: Mapping[str, Any]) -> Iterator[list[Row]]:
    for split, tasks in figures["answers"].items():
        yield [
            (
                "" if number else split, task, shorten(texts["commonest"], 28), _percent(texts["commonest_share"]),
                _whole(texts["answers"]), _whole(texts["questions"]), _whole(texts["pairs"]),
            )
            for number, (task, texts) in enumerate(tasks.items())
        ]  # fmt: skip


def _share(count: int, total: int) -> str:
    return f"{count:,} ({_percent(count / total)})" if count else "-"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}" if share >= 0.01 or not share else "<1%"


def _hours(hours: float | None) -> str:
    return "-" if hours is None else f"{hours:,.2f}"


def _whole(number: int) -> str:
    return f"{number:,}" if number else "-"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _line(row: Row) -> str:
    return f"| {' | '.join(map(_cell, row))} |"
