"""The command line: ``python -m stetholm.cluster render|plan|status``; each says more with ``--help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stetholm.cluster.file import read_cluster
from stetholm.cluster.render import KINDS, render, warnings
from stetholm.errors import UserError

PUBLISHED = Path(__file__).parents[1] / "presets" / "medgemma-8-gpus.yaml"


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 2 with one line on stderr for what is the user's to mend."""
    chosen = _parser().parse_args(argv)
    try:
        {"render": _render, "plan": _plan, "status": _status}[chosen.command](chosen)
    except UserError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stetholm.cluster", description="What cluster.yaml describes.")
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--cluster", type=Path, help="the cluster file (default: cluster.yaml here)")
    shared.add_argument("--over", type=Path, action="append", default=[], help="a file of differences; repeatable")
    shared.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; repeatable")
    made = commands.add_parser("render", parents=[shared], help="write the file of another launcher to stdout")
    made.add_argument("--kind", choices=KINDS, required=True)
    made.add_argument("--job", default="pipeline", help="for rayjob: a script of jobs/ (default: pipeline)")
    plan = commands.add_parser("plan", parents=[shared], help="nodes, hours and money of the published training")
    plan.add_argument("--config", type=Path, default=PUBLISHED, help="settings file (default: the published setting)")
    plan.add_argument("--scale", type=float, action="append", help="times StethoBench (default: 1 and 1000)")
    plan.add_argument("--within", type=float, help="hours in which all must be done: then nodes are counted, not given")
    plan.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of measured lines")
    plan.add_argument("--check", type=Path, nargs="+", help="RESULT lines of runs of several sizes: predict each")
    status = commands.add_parser("status", help="what runs where, in tables")
    status.add_argument("--address", help="of a dashboard, e.g. http://127.0.0.1:8265 (default: what runs here)")
    return parser


def _render(chosen: argparse.Namespace) -> None:
    described = read_cluster(chosen.cluster, chosen.set, chosen.over)
    for line in warnings(described, chosen.kind):
        print(f"cluster: note: {line}", file=sys.stderr)
    print(render(described, chosen.kind, chosen.job), end="")


def _plan(chosen: argparse.Namespace) -> None:
    from stetholm.cluster import check, plan
    from stetholm.settings import load_settings

    if chosen.check:
        print(check.report(check.read_points(chosen.check)))
        return
    cluster = read_cluster(chosen.cluster, over=chosen.over).cluster
    settings = load_settings(chosen.config, chosen.set)
    for scale in chosen.scale or (1.0, 1000.0):
        print(plan.report(plan.make(cluster, settings, chosen.results, scale, chosen.within)))


def _status(chosen: argparse.Namespace) -> None:
    from stetholm.cluster import status

    status.show(status.look(chosen.address))


if __name__ == "__main__":
    sys.exit(main())
