"""The gate's verdicts, from facts; what is collected; the all-reduce among real processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.jobs.gate import blame
from phenomhpc.nodes.collect import ask, collect, use_folder
from phenomhpc.nodes.gate import (
    AllReduce,
    FolderFacts,
    NodeFacts,
    Wanted,
    bus_gbps,
    compare,
    facts_from,
    judge,
    judge_network,
    pair_rounds,
    parse_gpus,
    parse_processes,
    slow_nodes,
    verdict,
)

# The form of NVIDIA's documentation; written by hand, never seen on such hardware by this project.
CARDS = """\
0, GPU-5b3f0a3c-1111-2222-3333-444455556666, 4, 0, [N/A]
1, GPU-9d1e77aa-1111-2222-3333-444455556666, 3, 0, [N/A]
"""
OLD_CARDS = "0, GPU-5b3f0a3c-1111-2222-3333-444455556666, 11, [N/A], Yes\n"
ROWS = """\
GPU-5b3f0a3c-1111-2222-3333-444455556666, 0, 0
GPU-9d1e77aa-1111-2222-3333-444455556666, 1, 1
"""
APPS = "GPU-9d1e77aa-1111-2222-3333-444455556666, 4711, 30214\n"
HOSTS = ("n1", "n2", "n3", "n4")


def folder(**fields: Any) -> FolderFacts:
    return FolderFacts(
        **{"path": "/runs/r", "written": True, "words": None, "seconds": 0.1, "clock_skew_s": 0.0, **fields}
    )


def facts(**fields: Any) -> NodeFacts:
    plain = {"hostname": "n1.example", "cpus": 64, "mem_mb": 512000, "folders": (folder(),)}
    return NodeFacts(**{**plain, **fields})


def wanted(**fields: Any) -> Wanted:
    return Wanted(**{"node": "n1", "hosts": HOSTS, **fields})


def with_gpus(
    cards: str = CARDS, rows: str = "", apps: str = "", visible: tuple[str, ...] | None = ("0", "1")
) -> NodeFacts:
    return facts(gpus=parse_gpus(cards, rows), gpu_processes=parse_processes(apps), visible_gpus=visible)


def test_a_fit_node_is_fit() -> None:
    assert verdict(facts(), wanted(cpus=64, mem_mb=512000)) == ()
    assert verdict(with_gpus(), wanted(gpus=2, device="cuda")) == ()


@pytest.mark.parametrize(
    ("found", "asked", "words"),
    [
        (facts(cpus=8), wanted(cpus=16), "8 CPUs where 16 were asked for"),
        (facts(mem_mb=1000), wanted(mem_mb=2000), "1000 MiB of memory where 2000 were asked for"),
        (facts(folders=(folder(words="/runs/r: not writable (x)"),)), wanted(), "/runs/r: not writable (x)"),
        (facts(), wanted(node="m7"), "it is not among the job's nodes n1,n2,n3,n4"),
        (facts(), wanted(gpus=2, device="cuda"), "no nvidia-smi where 2 GPUs were asked for"),
        (facts(gpu_words="GPU is lost"), wanted(gpus=2), "nvidia-smi: GPU is lost"),
        (with_gpus(), wanted(gpus=4), "CUDA_VISIBLE_DEVICES is 0,1 where 4 GPUs were asked for"),
        (with_gpus(visible=None), wanted(gpus=4), "nvidia-smi shows 2 GPUs where 4 were asked for"),
        (with_gpus(apps=APPS), wanted(gpus=2), "GPU 1: process 4711 was left on it"),
        (with_gpus(rows=ROWS), wanted(gpus=2), "memory pages wait for a reset to be retired: 1"),
        (with_gpus(rows=ROWS), wanted(gpus=2), "its memory has no spare rows left"),
        (with_gpus(CARDS.replace("3, 0", "3, 12")), wanted(gpus=2), "uncorrected memory errors: 12"),
        (with_gpus(CARDS.replace(" 3, 0", " 40000, 0")), wanted(gpus=2), "40000 MiB are in use before the start"),
        (with_gpus(OLD_CARDS, visible=("0",)), wanted(gpus=1), "memory pages wait for a reset to be retired: Yes"),
        (with_gpus(CARDS.replace("3, 0", "[Unknown Error], [Unknown Error]")), wanted(gpus=2), "[Unknown Error]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(found: NodeFacts, asked: Wanted, words: str) -> None:
    assert any(words in problem for problem in verdict(found, asked)), verdict(found, asked)


def test_what_a_cpu_job_does_not_use_is_not_looked_at() -> None:
    assert verdict(with_gpus(apps=APPS, rows=ROWS), wanted(gpus=0)) == ()
    assert verdict(with_gpus(apps=APPS), wanted(gpus=2, device="cpu")) == ()


def test_gpus_of_other_jobs_are_not_ours() -> None:
    """Where Slurm does not hide them, nvidia-smi shows all of the node's."""
    assert verdict(with_gpus(apps=APPS, rows=ROWS, visible=("0",)), wanted(gpus=1)) == ()
    mine = with_gpus(apps=APPS, visible=("GPU-9d1e77aa",))
    assert verdict(mine, wanted(gpus=1)) == ("GPU 1: process 4711 was left on it",)


def test_text_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="GPU is lost"):
        parse_gpus("Unable to determine the device handle for GPU0: GPU is lost.  Reboot the system\n")
    assert parse_processes("No running processes found\n") == ()


def test_facts_travel_as_json() -> None:
    whole = with_gpus(rows=ROWS, apps=APPS)
    assert facts_from(json.loads(json.dumps(dataclasses.asdict(whole)))) == whole


def skewed(seconds: float) -> NodeFacts:
    return facts(folders=(folder(clock_skew_s=seconds),))


def test_a_clock_that_is_off_is_named_beside_the_others() -> None:
    found = compare({"n1": skewed(0.1), "n2": skewed(-7.5), "n3": skewed(0.0)}, None)
    assert found == {"n1": (), "n2": ("its clock is -7.5 s off",), "n3": ()}
    # A file system whose own clock is off makes no node sick while there are enough of them to tell.
    assert not any(compare({name: skewed(60.0) for name in HOSTS}, None).values())
    assert compare({"n1": skewed(0.0), "n2": skewed(6.0)}, None)["n2"]


def test_the_one_node_without_nvidia_smi_is_named() -> None:
    found = compare({"n1": with_gpus(), "n2": facts()}, 2)
    assert found == {"n1": (), "n2": ("no nvidia-smi, which the other nodes have",)}
    assert not any(compare({"n1": facts(), "n2": facts()}, 2).values())


def test_what_all_nodes_suffer_from_excludes_none() -> None:
    judged = judge(("n1", "n2"), {"n1": ["full"], "n2": ["full"]}, {})
    assert judged.excluded == () and "no node is to blame" in judged.words
    judged = judge(("n1", "n2"), {"n1": ["sick"]}, {})
    assert judged.excluded == ("n1",) and judged.words == "n1: sick"
    assert judge(("n1",), {"n1": ["sick"]}, {}).excluded == ("n1",)
    assert judge(("n1", "n2"), {"n1": []}, {"n2": "no word"}).words == "n2: no word"
    assert judge(("n1", "n2"), {}, {}).words == ""


# -- the network ------------------------------------------------------------------------------------------------------


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    assert bus_gbps(10**9, 1.0, 4) == pytest.approx(8 * 1.5)
    assert bus_gbps(10**9, 1.0, 2) == pytest.approx(8.0)


@pytest.mark.parametrize("nodes", [2, 3, 4, 7, 8, 64])
def test_in_the_rounds_every_node_meets_every_other_once(nodes: int) -> None:
    rounds = pair_rounds(nodes, 1000)
    pairs = [pair for pairs in rounds for pair in pairs]
    assert sorted(pairs) == [(i, j) for i in range(nodes) for j in range(i + 1, nodes)]
    for each in rounds:
        assert len({node for pair in each for node in pair}) == 2 * len(each)
    assert len(pair_rounds(nodes, 4)) == min(4, len(rounds))


def links(speeds: list[float], limit: int = 1000) -> dict[tuple[int, int], float]:
    return {(i, j): min(speeds[i], speeds[j]) for pairs in pair_rounds(len(speeds), limit) for i, j in pairs}


def test_the_slow_node_is_found_and_no_other() -> None:
    assert slow_nodes(links([10, 10, 1]), 3) == [2]
    assert slow_nodes(links([10, 1, 10, 10]), 4) == [1]
    assert slow_nodes(links([10, 10, 10, 10]), 4) == []
    assert slow_nodes(links([10, 9, 5, 8]), 4) == []
    assert slow_nodes(links([9, 0.1, 10, 8, 10, 0.2, 9, 10], limit=4), 8) == [1, 5]
    assert slow_nodes(links([*[100.0] * 63, 20.0], limit=4), 64) == [63]
    assert slow_nodes({(0, 1): 0.01}, 2) == []


def test_what_is_demanded_and_what_is_plenty() -> None:
    assert slow_nodes(links([10, 10, 6]), 3, min_gbps=8) == [2]
    assert slow_nodes(links([10, 10, 10]), 3, min_gbps=80) == []
    assert slow_nodes(links([90, 90, 5]), 3, plenty_gbps=2) == []
    assert slow_nodes(links([90, 90, 1]), 3, plenty_gbps=2) == [2]


def test_the_network_as_a_whole_below_what_is_demanded_excludes_none() -> None:
    figures = [AllReduce(bytes=4 << 20, seconds=0.01, busbw_gbps=5.0)]
    judged = judge_network(HOSTS[:3], figures, links([5, 5, 5]), 50)
    assert judged.excluded == () and "cluster.gate_min_gbps is 50" in judged.words
    judged = judge_network(HOSTS[:3], figures, links([5, 0.5, 5]), 4)
    assert judged.excluded == ("n2",) and "0.5 Gbit/s, the others' 5" in judged.words
    assert judge_network(HOSTS[:3], figures, links([5, 5, 5]), None).words == ""


def told(**by_rank: list[int]) -> dict[int, dict[str, Any]]:
    return {int(name[1:]): {"error": f"{name} says", "ranks": ranks} for name, ranks in by_rank.items()}


def test_whom_most_name_is_to_blame() -> None:
    assert blame(HOSTS, told(r0=[2], r1=[2], r3=[2])).excluded == ("n3",)
    # The cut-off head misses all others, who all miss it.
    assert blame(HOSTS, told(r0=[1, 2, 3], r1=[0], r2=[0], r3=[0])).excluded == ("n1",)
    assert blame(HOSTS, told(r0=[], r1=[], r3=[])).excluded == ("n3",)
    assert blame(HOSTS, told(r0=[], r1=[], r2=[], r3=[])).excluded == ()
    assert blame(HOSTS[:2], told(r0=[1], r1=[0])).excluded == ()


def test_whom_most_cannot_reach_is_cut_off() -> None:
    from phenomhpc.train.allreduce import cut_off

    assert cut_off([[], [], []]) == []
    assert cut_off([[2], [2], [0, 1]]) == [2]
    assert cut_off([[2], [2], []]) == [2]
    # Between two nodes alone: nobody can tell which.
    assert cut_off([[], [2], [1], []]) == [1, 2]


def start(tmp_path: Path, rank: int, world: int, **fields: Any) -> subprocess.Popen[str]:
    task = {
        "rank": rank, "hosts": ["localhost"] * world, "meeting": str(tmp_path / "meeting.json"), "device": "cpu", "join_s": 60,
        "budget_s": 2, **fields,
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "phenomhpc.train.allreduce"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(task) + "\n")
    child.stdin.flush()
    return child


def answers(children: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    return [json.loads(child.communicate(timeout=120)[0].splitlines()[-1]) for child in children]


def test_three_processes_measure_the_same(tmp_path: Path) -> None:
    said = answers([start(tmp_path, rank, 3) for rank in range(3)])
    assert said[0]["allreduce"][0]["bytes"] == 64 * 1024
    for each in said[0]["allreduce"]:
        assert each["busbw_gbps"] == pytest.approx(bus_gbps(each["bytes"], each["seconds"], 3))
    assert [pair[:2] for pair in said[0]["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    assert all(pair[2] > 0 for pair in said[0]["pairs"])
    for name in ("allreduce", "pairs", "backend"):
        assert said[0][name] == said[1][name] == said[2][name]


def test_who_does_not_come_is_named_and_nobody_else(tmp_path: Path) -> None:
    first, other = answers([start(tmp_path, rank, 3, join_s=10) for rank in (0, 2)])
    assert first["ranks"] == [1] and "did not come to the all-reduce within 10 s" in first["error"]
    assert set(other["ranks"]) <= {1}  # it knows, or its store was gone before it could


# -- collecting -------------------------------------------------------------------------------------------------------


def test_a_folder_that_works(tmp_path: Path) -> None:
    seen = use_folder(tmp_path, probe="probe-0")
    assert seen.words is None and seen.free_mb is not None and abs(seen.clock_skew_s or 0.0) < 5
    assert list(tmp_path.iterdir()) == []
    assert use_folder(tmp_path).words == f"{tmp_path}: not readable (it is empty: is its file system mounted?)"
    (tmp_path / "dataset.json").write_text("{}")
    assert use_folder(tmp_path).words is None


def test_a_folder_that_is_gone_or_not_ours_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert use_folder(gone, probe="p").words == f"{gone}: not writable (No such file or directory)"
    assert use_folder(gone).words == f"{gone}: not readable (No such file or directory)"
    assert "Not a directory" in str(use_folder(Path("/etc/passwd"), probe="p").words)


def test_a_folder_that_hangs_does_not_hang_the_gate(tmp_path: Path) -> None:
    seen = ask([sys.executable, "-c", "import signal; signal.pthread_sigmask(0, {15}); signal.pause()"], 0.5)
    assert seen == ("", "no answer within 0.5 s")
    os.mkfifo(tmp_path / "pipe")  # opening one waits for a writer, as opening a file on a dead mount waits for ever
    seen = ask([sys.executable, "-c", f"open({str(tmp_path / 'pipe')!r})"], 0.5)
    assert seen == ("", "no answer within 0.5 s")


def test_this_machine_has_facts() -> None:
    here = collect((), want_gpus=False)
    assert here.cpus >= 1 and here.mem_mb > 0 and here.gpus is None
