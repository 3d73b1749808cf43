"""May nodes train together: what the gate refuses, what it only tells, and what `why` makes of it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.config import PretrainConfig
from phenomhpc.config.base import ClusterConfig
from phenomhpc.errors import FencedError
from phenomhpc.jobs import steward
from phenomhpc.jobs.alarms import alarms_of
from phenomhpc.jobs.drift import Look, compare_nodes, drift_words, keep, keep_once, look, unlike
from phenomhpc.nodes.facts import Fingerprint
from phenomhpc.nodes.lock import Drift
from phenomhpc.nodes.trust import Trust, judge_drift, own_findings
from phenomhpc.runs import AttemptPaths, EventWriter, RunPaths, list_runs, read_events
from tests.unit import train_store
from tests.unit.fingerprints import lock, short

CARD = {"nvidia.driver": "570.1", "nvidia.model": "NVIDIA H100"}
NVIDIA = {"driver": "570.1", "model": "NVIDIA H100", "cuda": "12.8"}


def judged(second: Fingerprint, *, policy: Drift | None = None, allow: bool = False, uses_gpus: bool = True) -> Trust:
    nodes = {"n1": short(**CARD), "n2": second, "n3": short(**CARD)}
    return judge_drift(nodes, {}, policy, allow=allow, uses_gpus=uses_gpus)


def test_what_runs_insist_on_refuses_the_outlier_and_nobody_else() -> None:
    trust = judged(short(**{**CARD, "nvidia.driver": "565.7"}))
    assert trust.problems == {"n1": (), "n2": ("drift: nvidia.driver is 565.7, the others 570.1",), "n3": ()}
    assert not any(trust.told.values())
    changed = short(**CARD, **{"python.environment": "1" * 32})
    changed["python"]["distributions"]["numpy"] = "2.2.0 cccc"
    assert "(numpy 2.2.0, not 2.1.0)" in judged(changed).problems["n2"][0]


def test_the_rest_is_told_and_refuses_nobody() -> None:
    trust = judged(short(**CARD, kernel="6.1.0-2", packages="other"))
    assert not any(trust.problems.values())
    assert trust.told["n2"] == (
        "drift: kernel is 6.1.0-2, the others 6.1.0-1",
        "drift: packages is other, the others abc",
    )
    trust = judged(short(**CARD, kernel="6.1.0-2"), policy=Drift(must=("kernel",)))
    assert trust.problems["n2"]
    assert not any(judged(short(**CARD, kernel="6"), policy=Drift(ignore=("kernel",))).told.values())


def test_who_allows_drift_is_told_of_it() -> None:
    trust = judged(short(**{**CARD, "nvidia.driver": "565.7"}), allow=True)
    assert not any(trust.problems.values()) and "565.7" in trust.told["n2"][0]


def test_a_job_without_gpus_asks_for_no_driver() -> None:
    trust = judged(short(**{**CARD, "nvidia.driver": "565.7"}), uses_gpus=False)
    assert not any(trust.problems.values()) and "565.7" in trust.told["n2"][0]
    assert judged(short(**CARD, **{"python.environment": "1"}), uses_gpus=False).problems["n2"]


def test_what_a_node_could_not_tell_is_held_against_nobody() -> None:
    hung = short()
    hung["silent"] = {"nvidia": "no answer within 20 s"}
    trust = judged(hung)
    assert not any(trust.problems.values()) and not any(trust.told.values())
    # NCCL's version is of the environment, which did not answer; the card did.
    nodes = {name: short(**CARD, **{"nvidia.nccl": "2.26.2"}) for name in ("n1", "n3")}
    slow = short(**CARD, **{"python.environment": "", "python.version": "", "python.torch": ""})
    slow["silent"] = {"python": "no answer within 10 s"}
    trust = judge_drift({**nodes, "n2": slow}, {}, None, allow=False, uses_gpus=True)
    assert not any(trust.problems.values()) and not any(trust.told.values())


def test_a_node_is_measured_by_its_own_lock() -> None:
    site = lock(nvidia=NVIDIA)
    found = own_findings("n1", short(**CARD, **{"nvidia.cuda": "12.8.1"}), site)
    assert found == ()
    found = own_findings("n1", short(**{**CARD, "nvidia.cuda": "12.8.1", "nvidia.driver": "565.7"}), site)
    assert [(each.fact, each.found, each.expected, each.level) for each in found] == [
        ("nvidia.driver", "565.7", "570.1", "must")
    ]
    assert str(found[0]) == "nvidia.driver is 565.7 where 570.1 is wanted (site.json)"
    absent = own_findings("n1", short(), site)
    assert {each.fact for each in absent} == {"nvidia.driver", "nvidia.model", "nvidia.cuda"}
    assert all(each.found == "absent" for each in absent)


def test_where_one_of_two_is_wrong_by_its_own_lock_the_other_is_not_blamed() -> None:
    nodes = {"n1": short(**CARD), "n2": short(**{**CARD, "nvidia.driver": "565.7"})}
    site = lock(nvidia={"driver": "570.1"})
    own = {name: own_findings(name, seen, site) for name, seen in nodes.items()}
    trust = judge_drift(nodes, own, site.drift, allow=False, uses_gpus=True)
    assert trust.problems == {"n1": (), "n2": ("drift: nvidia.driver is 565.7 where 570.1 is wanted (site.json)",)}
    # In the middle of a roll both are right by themselves: a gang of both kinds is refused, and nobody is to blame.
    newer = own_findings("n2", nodes["n2"], lock(nvidia={"driver": "565.7"}))
    trust = judge_drift(nodes, {"n1": own["n1"], "n2": newer}, site.drift, allow=False, uses_gpus=True)
    assert trust.problems["n1"] and trust.problems["n2"]


def test_somebodys_own_environment_is_not_measured_by_the_sites(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "current").symlink_to("1")
    python = {"version": "3.11", "env_path": str(tmp_path / "current"), "environment": "a" * 32}
    own = short()
    assert own_findings("n1", own, lock(python=python)) == ()
    own["python"]["path"] = str(tmp_path / "1")
    assert [each.fact for each in own_findings("n1", own, lock(python=python))] == ["python.environment"]


def told(node: str, seen: Fingerprint, **more: Any) -> dict[str, Any]:
    return Look(node=node, seen=seen, lock=None, **more).said()


def config(**cluster: Any) -> PretrainConfig:
    return PretrainConfig(store=("s",), cluster=ClusterConfig(**cluster))


def test_the_gate_decides_by_what_nodes_told() -> None:
    nodes = {name: told(name, short(**CARD)) for name in ("n1", "n3")}
    nodes["n2"] = told("n2", short(**{**CARD, "nvidia.driver": "565.7"}))
    nodes["n4"] = {"fingerprint": None, "findings": [], "words": ["no fingerprint: no answer within 25 s"]}
    own = Look(node="n1", seen=short(**CARD), lock=None)
    trust = compare_nodes(own, nodes, config(gpus_per_node=8))
    assert (
        trust.problems["n2"]
        and not trust.problems["n4"]
        and trust.told["n4"] == ("no fingerprint: no answer within 25 s",)
    )
    assert not any(compare_nodes(own, nodes, config(gpus_per_node=8, allow_drift=True)).problems.values())
    assert not any(compare_nodes(own, nodes, config(gpus_per_node=0)).problems.values())


def test_this_node_looks_at_itself_and_keeps_what_it_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHENOMHPC_SITE", str(tmp_path / "site.json"))
    seen = look("n1")
    assert seen.seen is not None and seen.lock is None and seen.words == ()
    attempt = AttemptPaths(tmp_path / "001")
    keep(attempt, seen)
    text = attempt.node("n1").read_text()
    assert seen.seen["digest"] in text and '"values"' in text
    (tmp_path / "site.json").write_text('{"schema": 1}')
    assert "name: is missing" in look("n1").words[0]


def gate(node: str, *words: str, attempt: int = 1) -> dict[str, Any]:
    return {"event": "gate", "attempt": attempt, "node": node, "drift": list(words)}


def test_drift_is_named_where_it_is_the_likely_cause() -> None:
    drifted = "drift: kernel is 6.1.0-2, the others 6.1.0-1"
    events = [gate("n1"), gate("n2", drifted), gate("n3")]
    assert drift_words(events, {"n2"}, 1) == (
        f"likely the cause: it failed on n2 only, which is not like the others: {drifted}",
    )
    assert drift_words(events, {"n1", "n2"}, 1) == (), "a node that is like the others failed too"
    assert drift_words(events, set(), 1) == () and drift_words(events, {"n1"}, 1) == ()
    assert drift_words([gate(name, drifted) for name in ("n1", "n2")], {"n1", "n2"}, 1) == (), "all differ"
    assert drift_words(events, {"n2"}, 2) == ()
    assert drift_words(events, {"n2.cluster.example"}, 1) != (), "a host's own name may have a domain"


def array_node(attempt: AttemptPaths, node: str, **values: str) -> None:
    keep(attempt, Look(node=node, seen=short(**values), lock=None))


def test_nodes_of_an_array_are_compared_when_it_has_ended(tmp_path: Path) -> None:
    attempt = AttemptPaths(tmp_path / "001")
    assert unlike(attempt) == {}, "nobody has kept anything"
    for node in ("n1", "n3"):
        array_node(attempt, node)
    assert unlike(attempt) == {}
    array_node(attempt, "n2", kernel="6.1.0-2")
    keep(attempt, Look(node="n4", seen=None, lock=None, words=("no fingerprint: no answer within 15 s",)))
    drifted = ("drift: kernel is 6.1.0-2, the others 6.1.0-1",)
    assert unlike(attempt) == {"n2": drifted}
    started = [{"event": "started", "attempt": 1, "host": node} for node in ("n1", "n2", "n3")]
    events = [*started, {"event": "drift", "attempt": 1, "node": "n2", "drift": list(drifted), "host": "n1"}]
    (line,) = drift_words(events, {"n2"}, 1)
    assert line == f"likely the cause: it failed on n2 only, which is not like the others: {drifted[0]}"
    assert drift_words(events, {"n1"}, 1) == () == drift_words(started, {"n2"}, 1)
    assert alarms_of(events) == [f"n2: {drifted[0]}"]


def test_the_steward_tells_of_an_arrays_nodes_that_are_not_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = RunPaths(tmp_path / "convert-x")
    for node in ("n1", "n2", "n3"):
        array_node(paths.attempt(1), node, **({"kernel": "6.1.0-2"} if node == "n2" else {}))
    steward.tell_unlike(paths, 1)
    (event,) = read_events(paths)
    assert (event["event"], event["node"]) == ("drift", "n2") and "6.1.0-2" in event["drift"][0]
    assert "n2: drift: kernel is 6.1.0-2" in capsys.readouterr().out
    gang = RunPaths(tmp_path / "pretrain-x")
    array_node(gang.attempt(1), "n1", kernel="6.1.0-2")
    array_node(gang.attempt(1), "n2")
    EventWriter(gang, 1, 0, "t").emit("gate", node="n1", drift=[])
    steward.tell_unlike(gang, 1)
    assert [event["event"] for event in read_events(gang)] == ["gate"], "the gate has told already"


@pytest.mark.parametrize("content", ["{", '{"node": "n2", "values": {}}'])
def test_a_fingerprint_that_cannot_be_read_does_not_stop_the_steward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    paths = RunPaths(tmp_path / "convert-x")
    array_node(paths.attempt(1), "n1")
    paths.attempt(1).node("n2").write_text(content)
    steward.tell_unlike(paths, 1)
    assert "nodes are not compared: " in capsys.readouterr().out
    assert read_events(paths) == []


def test_a_run_here_keeps_the_fingerprint_of_this_machine(tmp_path: Path) -> None:
    train_store.write_plate(tmp_path / "raw", fields=1)
    train_store.convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    (run,) = list_runs(tmp_path / "runs")
    host = socket.gethostname().partition(".")[0]
    kept = json.loads(run.attempt(run.last_attempt()).node(host).read_bytes())
    assert (kept["node"], kept["host"]) == (host, host) and kept["values"]["python.environment"]


def test_a_refusal_is_told_once_and_says_the_way_out() -> None:
    message = "n2: drift: python.environment is 1, the others f"
    refused = [
        {"event": "failed", "attempt": 1, "task": task, "exit_code": 77, "message": message} for task in range(3)
    ]
    (line,) = drift_words([*refused, gate("n1", attempt=2)], set(), 2)
    assert line.startswith(f"attempt 1 was refused: {message}; ") and "--allow-drift" in line
    assert drift_words([{**refused[0], "message": "n2: /runs: not writable"}], set(), 1) == ()


def test_a_task_that_was_replaced_while_its_node_was_looked_at_writes_nothing(tmp_path: Path) -> None:
    attempt = RunPaths(tmp_path / "pretrain-x").attempt(1)

    def replaced() -> None:
        raise FencedError("task 0 was started again")

    with pytest.raises(FencedError):
        keep_once(attempt, "n3", replaced)
    assert not attempt.node("n3").exists()
    keep_once(attempt, "n3", lambda: None)
    assert attempt.node("n3").is_file()
    keep_once(attempt, "n3", replaced)  # an earlier task of the node did it
