"""Nodes of a role: the node types of ``cluster.yaml`` say by a label what they are for, and work keeps to its own.

Without that, a training worker that asks for a GPU gets the smallest node that has one, which is a server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

LABEL = "stetholm.role"
"""Of a node: head, data, trainer or server."""
Role = Literal["trainer", "server"]


def nodes_of(role: Role, chosen: Mapping[str, str] | None = None) -> dict[str, str]:
    """The label selector of work of a role; empty where any node will do.

    Args:
        role: whose nodes, where nodes of this cluster say what they are for. The head of ``cluster.yaml`` does before
            any other node is there; laptops and machines of one's own do not.
        chosen: what the settings say; it wins, and ``{}`` means any node.
    """
    if chosen is not None:
        return dict(chosen)
    import ray

    known = ray.is_initialized() and any(LABEL in node["Labels"] for node in ray.nodes() if node["Alive"])
    return {LABEL: role} if known else {}


def gpu_nodes(use_gpu: bool, chosen: Mapping[str, str] | None = None) -> dict[str, str] | None:
    """The label selector of actors that generate or measure: with a GPU, trainers; else None, any node."""
    return (nodes_of("trainer", chosen) or None) if use_gpu else None
