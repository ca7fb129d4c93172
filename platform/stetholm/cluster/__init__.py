"""The cluster that ``cluster.yaml`` describes: rendered for other launchers, planned, and looked at.

``python -m stetholm.cluster render|plan|status --help`` says how.
"""

from stetholm.cluster.file import ClusterFile, Described, NodeType, read_cluster
from stetholm.cluster.render import KINDS, Kind, render

__all__ = ["KINDS", "ClusterFile", "Described", "Kind", "NodeType", "read_cluster", "render"]
