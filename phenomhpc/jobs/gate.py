"""The gate: the nodes of a gang look at themselves, at each other and at the network between them, before any work starts.

    each node: facts -> verdict -> gate-START/node-TASK.json
    the first who has all of them, or has waited long enough: gate-START/nodes.json, the decision everybody follows
    all: a short all-reduce and exchanges in pairs -> gate-START/network.json, decided in the same way

A decision has one author (commit_first), who also puts the refused nodes into the exclusion ledger: a node that is sick,
or gone, cannot be relied on to say so itself.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenomhpc.errors import GateRefused, PhenomError
from phenomhpc.jobs import drift
from phenomhpc.nodes import exclusions
from phenomhpc.nodes.collect import abandon, collect, use_folder
from phenomhpc.nodes.gate import (
    AllReduce,
    FolderFacts,
    Judgement,
    NodeFacts,
    Wanted,
    compare,
    facts_from,
    judge,
    judge_network,
    verdict,
)
from phenomhpc.runs import (
    GatePaths,
    RunPaths,
    canonical_json,
    commit,
    commit_first,
    make_folder,
    new_token,
    read_provenance,
)

if TYPE_CHECKING:
    from phenomhpc.config import AnyConfig
    from phenomhpc.slurm.inside import Place

Emit = Callable[..., None]

# Meeting includes loading torch, on all nodes at once from one file system; then the measurement itself.
JOIN_S = 90.0
BUDGET_S = 4.0
# Beyond both: pairs with a very slow node are measured to their end.
GRACE_S = 30.0
# How long a node that could not join waits for the word of one that knows more.
WORD_S = 10.0
_POLL_S = 0.1
_LOOK_S = 0.5


def run_gate(config: AnyConfig, paths: RunPaths, place: Place, *, attempt: int, task: int, emit: Emit) -> None:
    """Return when this node and its peers are fit; event `gate` with what was seen and how long it took.

    Raises GateRefused naming the nodes (its `node` is the first of them, None when none is to blame), after the event
    `failed` where the run folder can be written; the refused nodes are in the ledger for cluster.exclude_hours then.
    Never waits for ever: for peers at most cluster.gate_wait_s, for the all-reduce JOIN_S, BUDGET_S and GRACE_S.
    """
    gate = _Gate(config=config, paths=paths, place=place, attempt=attempt, task=task)
    began = time.monotonic()
    child = gate.start_all_reduce() if len(place.hosts) > 1 else None
    try:
        facts = gate.look_at_this_node()
        told = gate.decide_about_nodes(facts)
        seen = gate.measure(child) if child is not None else {}
    except GateRefused as error:
        print(f"gate: {error}", flush=True)
        if gate.run_folder_works:
            fields = {"class": "node_fail", "exit_code": error.exit_code, "message": str(error), "node": error.node}
            emit("failed", **fields, log=str(paths.log_file(task, attempt)))
        raise
    finally:
        if child is not None:
            abandon(child)
    seconds = round(time.monotonic() - began, 3)
    own = {"cpus": facts.cpus, "mem_mb": facts.mem_mb, "gpus": None if facts.gpus is None else len(facts.gpus)}
    print("".join(f"gate: {node}: {words}\n" for node, each in told.items() for words in each), end="")
    kept = {"digest": (gate.look.seen or {}).get("digest"), "drift": told.get(gate.node, ())}
    emit(
        "gate", node=gate.node, seconds=seconds, **own, **kept, folders=[asdict(each) for each in facts.folders], **seen
    )
    print(f"gate: {gate.node} is fit{_figures(seen)}; {seconds:.1f} s", flush=True)


def folders_of(config: AnyConfig) -> list[Path]:
    """Folders that a job reads, beside its run."""
    store = getattr(config, "store", ())
    return [Path(each) for each in ((store,) if isinstance(store, str) else store) if each]


def wanted_of(config: AnyConfig, node: str, hosts: tuple[str, ...]) -> Wanted:
    """What was asked of each node."""
    cluster = config.cluster
    return Wanted(
        node=node,
        hosts=hosts,
        cpus=cluster.cpus_per_task,
        mem_mb=cluster.mem_mb,
        gpus=cluster.gpus_per_node,
        device=getattr(config, "device", "auto"),
    )


def check_here(run_folder: Path, read: list[Path], gpus: int | None) -> tuple[NodeFacts, tuple[str, ...]]:
    """This machine's facts and what is wrong with it, by the gate's rules; gpus None: those that nvidia-smi shows."""
    name = socket.gethostname()
    folders = [use_folder(run_folder, probe=f".probe-{new_token()}"), *(use_folder(folder) for folder in read)]
    facts = collect(folders, want_gpus=True)
    wanted = Wanted(node=name, hosts=(name,), gpus=len(facts.gpus or ()) if gpus is None else gpus)
    problems = verdict(facts, wanted)
    if gpus is None and facts.gpu_words is not None:
        problems = (*problems, f"nvidia-smi: {facts.gpu_words}")
    return facts, problems


def _figures(seen: Mapping[str, Any]) -> str:
    if not seen:
        return ""
    best = max(each["busbw_gbps"] for each in seen["allreduce"])
    return f", all-reduce at {best:.3g} Gbit/s ({seen['backend']})"


@dataclass(frozen=True, kw_only=True)
class _Gate:
    """One node's way through the gate."""

    config: AnyConfig
    paths: RunPaths
    place: Place
    attempt: int
    task: int

    @cached_property
    def files(self) -> GatePaths:
        return self.paths.attempt(self.attempt).gate(self.place.restarts)

    @property
    def hosts(self) -> tuple[str, ...]:
        return self.place.hosts

    @property
    def node(self) -> str:
        return self.hosts[self.place.rank]

    @cached_property
    def wanted(self) -> Wanted:
        return wanted_of(self.config, self.node, self.hosts)

    @cached_property
    def run_folder(self) -> FolderFacts:
        return use_folder(self.paths.root, probe=f".{self.files.root.name}-{self.files.probe_name(self.place.rank)}")

    @cached_property
    def look(self) -> drift.Look:
        return drift.look(self.node)

    @property
    def run_folder_works(self) -> bool:
        return self.run_folder.words is None

    # -- this node ----------------------------------------------------------------------------------------------------

    def look_at_this_node(self) -> NodeFacts:
        """Its facts, told to the others.  A node that cannot write to the run folder leaves: the others will miss it."""
        folders = [self.run_folder, *(use_folder(folder) for folder in folders_of(self.config))]
        facts = collect(folders, want_gpus=bool(self.wanted.gpus) and self.wanted.device != "cpu")
        if not self.run_folder_works:
            raise GateRefused(f"{self.node}: {self.run_folder.words}", self.node)
        drift.keep(self.paths.attempt(self.attempt), self.look)
        make_folder(self.files.root)
        said = {"node": self.node, "time": time.time(), "facts": asdict(facts), "problems": verdict(facts, self.wanted)}
        commit(self.files.node(self.place.rank), canonical_json({**said, "drift": self.look.said()}))
        return facts

    # -- all nodes ----------------------------------------------------------------------------------------------------

    def decide_about_nodes(self, own: NodeFacts) -> Mapping[str, tuple[str, ...]]:
        """Wait for the others' word; raise GateRefused when any of them is not fit.  What else differs, by node."""
        limit_s = self.config.cluster.gate_wait_s
        everyone = [self.files.node(rank) for rank in range(len(self.hosts))]
        present = self._wait_for(everyone, self.files.nodes_decision, limit_s)
        told = {self.hosts[rank]: json.loads(everyone[rank].read_bytes()) for rank in present}
        missing = {
            host: f"no word from it within {limit_s:g} s: its task did not start, or cannot write to {self.paths.root}"
            for host in self.hosts
            if host not in told
        }
        facts = {host: facts_from(each["facts"]) for host, each in told.items()}
        beside = compare(facts, self.wanted.gpus)
        trust = drift.compare_nodes(self.look, {host: each["drift"] for host, each in told.items()}, self.config)
        problems = {host: (*told[host]["problems"], *beside[host], *trust.problems[host]) for host in told}
        self._follow(self.files.nodes_decision, judge(self.hosts, problems, missing), {"facts": told})
        return trust.told

    def _wait_for(self, files: list[Path], decision: Path, limit_s: float) -> list[int]:
        """Positions of the files that are there, when all are, somebody has decided, or the time is over."""
        deadline = time.monotonic() + limit_s
        while True:
            # Listing makes an NFS client look at the server, where asking for one name may be answered from memory.
            names = set(os.listdir(self.files.root))  # noqa: PTH208
            present = [position for position, file in enumerate(files) if file.name in names]
            if len(present) == len(files) or decision.name in names or time.monotonic() > deadline:
                return present
            time.sleep(_POLL_S)

    def _follow(self, decision: Path, own: Judgement, seen: Mapping[str, Any]) -> None:
        """Decide, or follow who was first; the author of a refusal records it.  Raises GateRefused."""
        if commit_first(decision, canonical_json(asdict(own))):
            judgement = own
            for node in own.excluded:
                self._exclude(node, ", ".join(own.problems[node]), seen)
        else:
            raw = json.loads(decision.read_bytes())
            problems = {node: tuple(words) for node, words in raw["problems"].items()}
            judgement = Judgement(problems=problems, excluded=tuple(raw["excluded"]))
        if judgement.words:
            raise GateRefused(judgement.words, next(iter(judgement.excluded), None))

    def _exclude(self, node: str, reason: str, seen: Mapping[str, Any]) -> None:
        where = {"run": str(self.paths.root), "attempt": self.attempt, "job": self.place.job_id, "seen_by": self.node}
        told = {name: value.get(node) if name == "facts" else value for name, value in seen.items()}
        cluster = str(read_provenance(self.paths).get("cluster") or os.environ.get("SLURM_CLUSTER_NAME", "?"))
        try:
            exclusions.record(
                cluster=cluster,
                node=node,
                reason=reason,
                evidence={**where, "words": reason, **told},
                hours=self.config.cluster.exclude_hours,
                by="gate",
            )
        except PhenomError as error:  # the event says it too, and the steward reads that
            print(f"gate: {node} is not in the exclusion ledger: {error}", flush=True)

    # -- the network --------------------------------------------------------------------------------------------------

    def start_all_reduce(self) -> subprocess.Popen[str]:
        """The process that measures: it loads torch while this one looks at the node."""
        threads = {"OMP_NUM_THREADS": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "phenomhpc.train.allreduce"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads},
            text=True,
        )

    def measure(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        """What the all-reduce saw, the same on every node; raises GateRefused for slow, missing and unreachable nodes."""
        minimum = self.config.cluster.gate_min_gbps
        said = self._ask(child, minimum)
        if "error" in said:
            self._judge_failure(said)
            return {}
        figures = [AllReduce(**each) for each in said["allreduce"]]
        pairs = {(int(first), int(second)): float(gbps) for first, second, gbps in said["pairs"]}
        judgement = judge_network(self.hosts, figures, pairs, minimum, said["plenty_gbps"])
        self._follow(
            self.files.network_decision, judgement, {"allreduce": said["allreduce"], "pairs": self._named(pairs)}
        )
        return {
            "backend": said["backend"],
            "network_s": round(said["seconds"], 3),
            "allreduce": said["allreduce"],
            "pairs": self._named(pairs),
        }

    def _ask(self, child: subprocess.Popen[str], minimum: float | None) -> dict[str, Any]:
        """The process's answer; {"error", "ranks"} when it has none."""
        task = {
            "rank": self.place.rank,
            "hosts": self.hosts,
            "meeting": str(self.files.meeting),
            "device": self.wanted.device,
            "join_s": JOIN_S,
            "budget_s": BUDGET_S,
            "min_gbps": minimum,
        }
        limit_s = JOIN_S + BUDGET_S + GRACE_S
        deadline = time.monotonic() + limit_s
        line: str | None = json.dumps(task) + "\n"
        decided = False
        while True:
            try:
                out, _ = child.communicate(line, timeout=_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                line = None  # it is on its way
            except BrokenPipeError:
                out = ""
                break
            # Another node may know already that it fails, or be done a moment earlier.
            if not decided and self._decided(self.files.network_decision):
                decided, deadline = True, time.monotonic() + WORD_S
            if time.monotonic() > deadline:
                return {"error": f"the all-reduce was not over after {limit_s:g} s", "ranks": []}
        lines = [line for line in out.splitlines() if line.startswith("{")]
        if not lines:
            return {"error": f"the all-reduce's process died (exit code {child.wait()})", "ranks": [self.place.rank]}
        value: dict[str, Any] = json.loads(lines[-1])
        return value

    def _judge_failure(self, said: Mapping[str, Any]) -> None:
        """It failed here: hear what the others saw, then blame who is named most.  Raises GateRefused unless all went well."""
        commit(self.files.measured(self.place.rank), canonical_json({"error": said["error"], "ranks": said["ranks"]}))
        everyone = [self.files.measured(rank) for rank in range(len(self.hosts))]
        present = self._wait_for(everyone, self.files.network_decision, WORD_S)
        told = {rank: json.loads(everyone[rank].read_bytes()) for rank in present}
        self._follow(self.files.network_decision, blame(self.hosts, told), {"allreduce": {self.node: said["error"]}})

    def _decided(self, decision: Path) -> bool:
        return decision.name in os.listdir(self.files.root)  # noqa: PTH208

    def _named(self, pairs: Mapping[tuple[int, int], float]) -> list[list[Any]]:
        return [[self.hosts[first], self.hosts[second], gbps] for (first, second), gbps in sorted(pairs.items())]


def blame(hosts: tuple[str, ...], told: Mapping[int, Mapping[str, Any]]) -> Judgement:
    """Who is to blame for an all-reduce that failed.  told: by rank, its words and the ranks it blames.

    Whoever is named by most is; of the others nothing is known.  Nobody named: the nodes that said nothing at all.
    """
    votes = {rank: sum(rank in each["ranks"] for each in told.values()) for rank in range(len(hosts))}
    most = max(votes.values())
    if most:
        blamed = [rank for rank, count in votes.items() if count == most]
    else:
        blamed = [rank for rank in range(len(hosts)) if rank not in told]
    words = next(
        (str(told[rank]["error"]) for rank in sorted(told) if most == 0 or set(told[rank]["ranks"]) & set(blamed)), ""
    )
    if not blamed:
        blamed = list(range(len(hosts)))
    return judge(hosts, {hosts[rank]: (words or "it said nothing of the all-reduce",) for rank in blamed}, {})
