"""The real Slurm that tests run on; by hand: python -m tests.cluster up | down | shell | status."""

from tests.cluster.cluster import Cluster, why_not
from tests.cluster.processes import ClusterError
from tests.cluster.settings import ClusterSpec

__all__ = ["Cluster", "ClusterError", "ClusterSpec", "why_not"]
