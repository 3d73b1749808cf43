"""Is a node fit to take part?  Pure verdicts from facts; collect.py gathers them, jobs/gate.py lets nodes decide together.

The GPU's part is written from NVIDIA's documentation of nvidia-smi and was never run on NVIDIA hardware.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

MAX_SKEW_S = 5.0
# A GPU that nobody uses holds up to some hundred MiB for its driver; a forgotten process holds gigabytes.
MAX_IDLE_GPU_MB = 2048
# A node whose best link is worse than this part of what its peers reach is slow.
SLOW_SHARE = 1 / 3
GPU_FIELDS = ("index", "uuid", "memory.used", "ecc.errors.uncorrected.volatile.total", "retired_pages.pending")
ROW_FIELDS = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
PROCESS_FIELDS = ("gpu_uuid", "pid", "used_memory")
_NOTHING = ("", "N/A", "[N/A]", "[Not Supported]", "Not Supported")
_CLEAN = (None, "0", "No")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as nvidia-smi tells; None: it does not tell.  pending: retired pages or remapped rows that await a reset."""

    index: str
    uuid: str
    memory_used_mb: float | None
    uncorrected_ecc: str | None
    pending: str | None
    row_failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class FolderFacts:
    """What came of using a folder; words: why it is not usable, None when it is.

    clock_skew_s: this node's clock minus the file's time as the file system keeps it; None where nothing was written.
    """

    path: str
    written: bool
    words: str | None
    seconds: float
    free_mb: float | None = None
    clock_skew_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a node must have.  None: nothing was asked for.  hosts: the job's, by Slurm's names; node: this one's."""

    node: str
    hosts: tuple[str, ...]
    cpus: int | None = None
    mem_mb: int | None = None
    gpus: int | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What was found on a node.

    visible_gpus: CUDA_VISIBLE_DEVICES, None where it is not set; gpus None: there is no nvidia-smi here; gpu_words: why it
    gave no answer; gpu_processes: (GPU, process) that were there before us.
    """

    hostname: str
    cpus: int
    mem_mb: int
    folders: tuple[FolderFacts, ...]
    visible_gpus: tuple[str, ...] | None = None
    gpus: tuple[Gpu, ...] | None = None
    gpu_words: str | None = None
    gpu_processes: tuple[tuple[str, str], ...] = ()


# -- one node ---------------------------------------------------------------------------------------------------------


def parse_gpus(cards: str, rows: str = "") -> tuple[Gpu, ...]:
    """`nvidia-smi --query-gpu=GPU_FIELDS`, and `--query-remapped-rows=ROW_FIELDS`, with --format=csv,noheader,nounits.

    Raises ValueError for text of another form.
    """
    remapped = {uuid: (pending, failure) for uuid, pending, failure in _table(rows, len(ROW_FIELDS))}
    found = []
    for index, uuid, used, uncorrected, retired in _table(cards, len(GPU_FIELDS)):
        pending, failure = remapped.get(uuid or "", (None, None))
        found.append(
            Gpu(
                index=index or "?",
                uuid=uuid or "?",
                memory_used_mb=_number(used),
                uncorrected_ecc=uncorrected,
                pending=retired if retired not in _CLEAN else pending,
                row_failure=failure,
            )
        )
    return tuple(found)


def parse_processes(text: str) -> tuple[tuple[str, str], ...]:
    """`nvidia-smi --query-compute-apps=PROCESS_FIELDS`, the same form: (GPU's uuid, process id)."""
    return tuple((uuid or "?", pid or "?") for uuid, pid, _ in _table(text, len(PROCESS_FIELDS)))


def _table(text: str, width: int) -> list[list[str | None]]:
    lines = [line for line in text.splitlines() if line.strip() and "No running processes" not in line]
    rows = [[part.strip() for part in line.split(",")] for line in lines]
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            raise ValueError(line.strip())
    return [[None if part in _NOTHING else part for part in row] for row in rows]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def verdict(facts: NodeFacts, wanted: Wanted) -> tuple[str, ...]:
    """What is wrong with this node, one phrase each; empty: it is fit."""
    problems = []
    known = {name.partition(".")[0] for name in wanted.hosts}
    if wanted.node.partition(".")[0] not in known:
        problems.append(f"it is not among the job's nodes {','.join(wanted.hosts)}")
    if wanted.cpus is not None and facts.cpus < wanted.cpus:
        problems.append(f"{facts.cpus} CPUs where {wanted.cpus} were asked for")
    if wanted.mem_mb is not None and facts.mem_mb < wanted.mem_mb:
        problems.append(f"{facts.mem_mb} MiB of memory where {wanted.mem_mb} were asked for")
    problems += [folder.words for folder in facts.folders if folder.words is not None]
    return (*problems, *_gpu_problems(facts, wanted))


def _gpu_problems(facts: NodeFacts, wanted: Wanted) -> list[str]:
    asked = wanted.gpus or 0
    if not asked or wanted.device == "cpu":
        return []
    problems = []
    if facts.visible_gpus is not None and len(facts.visible_gpus) != asked:
        names = ",".join(facts.visible_gpus) or "empty"
        problems.append(f"CUDA_VISIBLE_DEVICES is {names} where {asked} GPUs were asked for")
    if facts.gpu_words is not None:
        problems.append(f"nvidia-smi: {facts.gpu_words}")
    elif facts.gpus is None:
        if wanted.device == "cuda":
            problems.append(f"no nvidia-smi where {asked} GPUs were asked for")
    elif len(facts.gpus) < asked:
        problems.append(f"nvidia-smi shows {len(facts.gpus)} GPUs where {asked} were asked for")
    if facts.gpus is None:
        return problems
    ours = own_gpus(facts.gpus, facts.visible_gpus)
    for gpu in ours:
        problems += [f"GPU {gpu.index} ({gpu.uuid}): {words}" for words in _card_problems(gpu)]
    left = [(gpu.index, pid) for gpu in ours for uuid, pid in facts.gpu_processes if uuid == gpu.uuid]
    return problems + [f"GPU {index}: process {pid} was left on it" for index, pid in left]


def own_gpus(gpus: Sequence[Gpu], visible: Sequence[str] | None) -> tuple[Gpu, ...]:
    """The job's GPUs: all where Slurm hides the others (or says nothing), else those CUDA_VISIBLE_DEVICES names."""
    if visible is None or len(gpus) <= len(visible):
        return tuple(gpus)
    return tuple(gpu for gpu in gpus if any(name == gpu.index or gpu.uuid.startswith(name) for name in visible if name))


def _card_problems(gpu: Gpu) -> list[str]:
    problems = []
    if gpu.uncorrected_ecc not in _CLEAN:
        problems.append(f"uncorrected memory errors: {gpu.uncorrected_ecc}")
    if gpu.pending not in _CLEAN:
        problems.append(f"memory pages wait for a reset to be retired: {gpu.pending}")
    if gpu.row_failure not in _CLEAN:
        problems.append("its memory has no spare rows left")
    if gpu.memory_used_mb is not None and gpu.memory_used_mb > MAX_IDLE_GPU_MB:
        problems.append(f"{gpu.memory_used_mb:g} MiB are in use before the start")
    return problems


# -- all nodes --------------------------------------------------------------------------------------------------------


def compare(facts: Mapping[str, NodeFacts], wanted_gpus: int | None) -> dict[str, tuple[str, ...]]:
    """What is wrong with nodes beside the others: a clock that is off, no GPU where the others have theirs."""
    problems: dict[str, list[str]] = {node: [] for node in facts}
    skews = {node: skew for node, each in facts.items() if (skew := _skew(each)) is not None}
    # Of three or more clocks the median is right; else the file system's own is asked.
    right = median(skews.values()) if len(skews) > 2 else 0.0
    for node, skew in skews.items():
        if abs(skew - right) > MAX_SKEW_S:
            problems[node].append(f"its clock is {skew - right:+.1f} s off")
    if wanted_gpus and any(each.gpus for each in facts.values()):
        for node, each in facts.items():
            if each.gpus is None and each.gpu_words is None:
                problems[node].append("no nvidia-smi, which the other nodes have")
    return {node: tuple(words) for node, words in problems.items()}


def _skew(facts: NodeFacts) -> float | None:
    return next((folder.clock_skew_s for folder in facts.folders if folder.clock_skew_s is not None), None)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What nodes decided together: problems by node; excluded: the nodes that go into the ledger."""

    problems: Mapping[str, tuple[str, ...]]
    excluded: tuple[str, ...]

    @property
    def words(self) -> str:
        """One sentence; empty: all are fit."""
        said = "; ".join(f"{node}: {', '.join(words)}" for node, words in self.problems.items() if words)
        if said and not self.excluded:
            said += " (as on every node: no node is to blame, none is excluded)"
        return said


def judge(hosts: Sequence[str], problems: Mapping[str, Sequence[str]], missing: Mapping[str, str]) -> Judgement:
    """Which nodes are refused.  What all of several nodes suffer from is no node's fault, so none is excluded for it."""
    by_node = {
        host: (*problems.get(host, ()), *((missing[host],) if host in missing else ())) for host in hosts
    }  # fmt: skip
    sick = tuple(host for host in hosts if by_node[host])
    return Judgement(problems=by_node, excluded=() if len(sick) == len(hosts) > 1 else sick)


@dataclass(frozen=True, kw_only=True)
class AllReduce:
    """One size of the all-reduce; bandwidths in Gbit/s.

    busbw = size / time * 2 (n - 1) / n, as nccl-tests define it (its doc/PERFORMANCE.md): what each link must carry, so
    that it compares with the link's speed whatever the number of nodes.
    """

    bytes: int
    seconds: float
    busbw_gbps: float


def bus_gbps(size: int, seconds: float, nodes: int) -> float:
    """Bus bandwidth of an all-reduce of `size` bytes among `nodes`, Gbit/s."""
    return size * 8e-9 / seconds * 2 * (nodes - 1) / nodes


def pair_rounds(nodes: int, limit: int) -> list[list[tuple[int, int]]]:
    """Rounds in which every node meets another one, each time a new one; at most `limit` rounds (the circle method)."""
    ring = [*range(nodes), *([-1] if nodes % 2 else [])]
    rounds = []
    for _ in range(min(limit, len(ring) - 1)):
        half = len(ring) // 2
        pairs = zip(ring[:half], reversed(ring[half:]), strict=True)
        rounds.append([(min(pair), max(pair)) for pair in pairs if -1 not in pair])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def best_links(pairs: Mapping[tuple[int, int], float], nodes: int) -> list[float]:
    """Each node's best bandwidth with any other: a good node is slow only with bad ones, a bad one with all."""
    best = [0.0] * nodes
    for (first, second), gbps in pairs.items():
        best[first], best[second] = max(best[first], gbps), max(best[second], gbps)
    return best


def slow_nodes(
    pairs: Mapping[tuple[int, int], float], nodes: int, min_gbps: float | None = None, plenty_gbps: float | None = None
) -> list[int]:
    """Ranks of the nodes that slow the others down; with two nodes nobody can tell which.

    plenty_gbps: a link that carries as much is never slow, however fast the others are; a demanded min_gbps outweighs it.

    Measured against the upper median of the nodes' best links, not of the pairs: of three nodes one bad one spoils two of
    the three pairs.
    """
    if nodes < 3 or not pairs:
        return []
    best = best_links(pairs, nodes)
    usual = sorted(best)[nodes // 2]
    least = usual * SLOW_SHARE if plenty_gbps is None else min(usual * SLOW_SHARE, plenty_gbps)
    if min_gbps is not None and usual >= min_gbps:
        least = max(least, min_gbps)
    return [rank for rank, gbps in enumerate(best) if gbps < least]


def judge_network(
    hosts: Sequence[str],
    figures: Sequence[AllReduce],
    pairs: Mapping[tuple[int, int], float],
    min_gbps: float | None,
    plenty_gbps: float | None = None,
) -> Judgement:
    """Slow nodes by the pairs; a whole that is below what was demanded, with no node to blame, excludes none of them."""
    best = best_links(pairs, len(hosts))
    slow = slow_nodes(pairs, len(hosts), min_gbps, plenty_gbps)
    usual = sorted(best)[len(hosts) // 2]
    problems: dict[str, tuple[str, ...]] = {
        hosts[rank]: (f"its best link to another node carries {best[rank]:.3g} Gbit/s, the others' {usual:.3g}",)
        for rank in slow
    }
    whole = max((each.busbw_gbps for each in figures), default=0.0)
    if min_gbps is not None and not slow and whole < min_gbps:
        words = f"the all-reduce reaches {whole:.3g} Gbit/s, cluster.gate_min_gbps is {min_gbps:g}"
        problems = dict.fromkeys(hosts, (words,))
    return judge(hosts, problems, {})


def facts_from(raw: Mapping[str, Any]) -> NodeFacts:
    """A node's facts from the JSON of their asdict."""
    fields = dict(raw)
    fields["folders"] = tuple(FolderFacts(**each) for each in raw["folders"])
    fields["gpus"] = None if raw["gpus"] is None else tuple(Gpu(**each) for each in raw["gpus"])
    fields["visible_gpus"] = None if raw["visible_gpus"] is None else tuple(raw["visible_gpus"])
    fields["gpu_processes"] = tuple((uuid, pid) for uuid, pid in raw["gpu_processes"])
    return NodeFacts(**fields)
