"""The environment of somebody's script, as docs/contracts.md promises it: pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# What tells a process its place among Slurm's tasks.  There is one of these per node, whatever its ranks: a program that
# believes them counts wrong, and Lightning would requeue the job itself.
_PLACES = re.compile(
    r"^(SLURM_(PROCID|LOCALID|NODEID|NTASKS\w*|NPROCS|TASKS_PER_NODE|TASK_PID|GTIDS|STEP\w*|CPU_BIND\w*)|SRUN_\w+|PMIX?_\w+)$"
)


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where and as how many the ranks of one start of a gang meet.

    interface: the network interface on which this node is known to the others, None to leave the choice to the libraries;
    threads: CPU threads of one rank.
    """

    id: str
    num_nodes: int
    node_rank: int
    ranks_per_node: int
    address: str
    port: int
    interface: str | None
    threads: int


def node_environment(base: Mapping[str, str], meeting: Meeting, contract: Mapping[str, str]) -> dict[str, str]:
    """What the one process of a node gets under the launcher `plain`.  A person's own OMP_NUM_THREADS and interfaces stay."""
    environment = {name: value for name, value in base.items() if not _PLACES.match(name)}
    environment |= {"MASTER_ADDR": meeting.address, "MASTER_PORT": str(meeting.port)}
    environment |= {"NODE_RANK": str(meeting.node_rank), "NNODES": str(meeting.num_nodes)}
    environment.setdefault("OMP_NUM_THREADS", str(meeting.threads))
    if meeting.interface is not None:
        environment.setdefault("GLOO_SOCKET_IFNAME", meeting.interface)
        environment.setdefault("NCCL_SOCKET_IFNAME", meeting.interface)
    return {**environment, **contract}


def rank_environment(
    base: Mapping[str, str], meeting: Meeting, contract: Mapping[str, str], local_rank: int
) -> dict[str, str]:
    """What a rank gets: the variables of torchrun, whose agent is not there (it would swallow signals and exit codes)."""
    world = meeting.num_nodes * meeting.ranks_per_node
    rank = meeting.node_rank * meeting.ranks_per_node + local_rank
    torchrun = {
        "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": meeting.ranks_per_node,
        "GROUP_RANK": meeting.node_rank, "GROUP_WORLD_SIZE": meeting.num_nodes, "ROLE_RANK": rank, "ROLE_WORLD_SIZE": world,
        "ROLE_NAME": "default", "TORCHELASTIC_RUN_ID": meeting.id, "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_MAX_RESTARTS": 0, "TORCHELASTIC_USE_AGENT_STORE": "False",
    }  # fmt: skip
    return node_environment(base, meeting, contract) | {name: str(value) for name, value in torchrun.items()}
