"""The exclusion ledger: what counts, what is made room for, what survives a torn file and several writers."""

from __future__ import annotations

import json
import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.nodes import exclusions
from phenomhpc.nodes.exclusions import Exclusion, active, choose_exclusions, merge, without

NOW = datetime(2030, 1, 2, 12, tzinfo=UTC)
NODES = ("n1", "n2", "n3", "n4")


def entry(
    node: str, *, age_h: float = 1, hours: float | None = 24, binding: bool = False, cluster: str = "c"
) -> Exclusion:
    since = NOW - timedelta(hours=age_h)
    until = None if hours is None else (since + timedelta(hours=hours)).isoformat(timespec="seconds")
    return Exclusion(
        cluster=cluster,
        node=node,
        reason=f"{node} is slow",
        since=since.isoformat(timespec="seconds"),
        until=until,
        by="t",
        binding=binding,
    )


def test_expired_entries_and_other_clusters_do_not_count() -> None:
    entries = [entry("n1"), entry("n2", age_h=25), entry("n3", cluster="d"), entry("n4", age_h=9000, hours=None)]
    assert [each.node for each in active(entries, "c", NOW)] == ["n1", "n4"]
    assert [each.node for each in active(entries, "c", NOW + timedelta(hours=24))] == ["n4"]


def test_of_two_entries_of_a_node_the_administrators_counts_then_the_newest() -> None:
    entries = [entry("n1", age_h=1), entry("n1", age_h=3, binding=True), entry("n1", age_h=2)]
    (kept,) = active(entries, "c", NOW)
    assert kept.binding
    (kept,) = active(entries[::2], "c", NOW)
    assert kept.since == entries[0].since


def test_a_new_entry_replaces_the_old_one_but_never_shortens_it() -> None:
    old = entry("n1", hours=100)
    (merged,) = merge([old], entry("n1", age_h=0, hours=1))
    assert merged.until == old.until and merged.since == NOW.isoformat(timespec="seconds")
    (merged,) = merge([entry("n1", hours=None)], entry("n1", age_h=0))
    assert merged.until is None
    assert len(merge([entry("n1", cluster="d"), entry("n2")], entry("n1"))) == 3


def test_without_takes_only_what_is_named() -> None:
    entries = [entry("n1"), entry("n2"), entry("n1", cluster="d")]
    assert [(each.cluster, each.node) for each in without(entries, "c", ["n1"])] == [("c", "n2"), ("d", "n1")]
    assert [each.cluster for each in without(entries, "c")] == ["d"]


def test_the_oldest_make_room_for_the_job_and_are_said() -> None:
    entries = [entry("n1", age_h=3), entry("n2", age_h=1), entry("n3", age_h=2)]
    choice = choose_exclusions(entries, NODES, 2)
    assert choice.excluded == ("n2", "n3")
    assert [each.node for each in choice.ignored] == ["n1"]
    assert "could not hold the job: n1 (n1 is slow)" in choice.words
    assert choose_exclusions(entries, NODES, 4).excluded == ()
    assert choose_exclusions(entries, NODES, 1).ignored == ()


def test_administrators_entries_and_the_persons_own_wish_are_never_left_out() -> None:
    entries = [entry("n1", binding=True, age_h=9), entry("n2", age_h=0)]
    choice = choose_exclusions(entries, NODES, 3, asked=["n4"])
    assert choice.excluded == ("n1", "n4") and [each.node for each in choice.ignored] == ["n2"]


def test_nodes_of_another_partition_are_not_named_to_slurm() -> None:
    choice = choose_exclusions([entry("m9"), entry("n1")], NODES, 1)
    assert choice.excluded == ("n1",) and not choice.ignored


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHENOMHPC_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PHENOMHPC_SITE", str(tmp_path / "etc" / "site.json"))
    return tmp_path / "state" / "excluded.json"


def put(node: str, **fields: object) -> None:
    exclusions.record(cluster="c", node=node, reason="sick", evidence={"run": "r"} | fields, hours=1)


def test_what_is_recorded_is_read_and_cleared(state: Path) -> None:
    put("n1", gbps=0.5)
    put("n2")
    ledger = exclusions.read_ledger()
    assert [(each.node, each.evidence["run"]) for each in ledger.entries] == [("n1", "r"), ("n2", "r")]
    assert ledger.entries[0].evidence["gbps"] == 0.5
    assert exclusions.excluded_nodes("c", NODES, 2).excluded == ("n1", "n2")
    assert exclusions.excluded_nodes("other", NODES, 2).excluded == ()
    assert exclusions.clear(cluster="c", nodes=["n1", "n9"]) == ("n1",)
    assert exclusions.clear(cluster="c", nodes=None) == ("n2",)
    assert exclusions.read_ledger().entries == ()


def test_the_administrators_file_binds_and_is_not_ours_to_clear(state: Path, tmp_path: Path) -> None:
    exclusions.record(
        cluster="c", node="n3", reason="DIMM", evidence={}, hours=None, by="root", path=exclusions.site_ledger()
    )
    assert exclusions.site_ledger() == tmp_path / "etc" / "excluded.json"
    assert exclusions.clear(cluster="c", nodes=None) == ()
    assert exclusions.excluded_nodes("c", NODES, 4).excluded == ("n3",)


def test_the_place_of_the_ledger(tmp_path: Path) -> None:
    assert exclusions.user_ledger({"PHENOMHPC_STATE": "/a", "XDG_STATE_HOME": "/b"}) == Path("/a/excluded.json")
    assert exclusions.user_ledger({"XDG_STATE_HOME": "/b"}) == Path("/b/phenomhpc/excluded.json")
    assert exclusions.user_ledger({}) == Path.home() / ".local" / "state" / "phenomhpc" / "excluded.json"
    assert exclusions.site_ledger({}) == Path("/etc/phenomhpc/excluded.json")


def test_a_torn_file_is_one_line_and_the_next_writer_moves_it_aside(state: Path) -> None:
    put("n1")
    state.write_text(state.read_text()[:-20])
    said: list[str] = []
    assert exclusions.excluded_nodes("c", NODES, 1, say=said.append).excluded == ()
    assert len(said) == 1 and str(state) in said[0] and "mend or remove it" in said[0]
    put("n2")
    assert exclusions.excluded_nodes("c", NODES, 1).excluded == ("n2",)
    (aside,) = state.parent.glob("excluded.json.unreadable-*")
    assert "n1" in aside.read_text()


@pytest.mark.parametrize(
    "raw",
    [
        "n1",
        {"node": "n1"},
        {"cluster": "c", "node": "n1; rm"},
        {"cluster": "c", "node": 7},
        {"cluster": "c", "node": "n1", "until": "tomorrow"},
        {"cluster": "c", "node": "n1", "until": "2030-01-01T00:00:00"},
    ],
)
def test_an_entry_that_is_none_is_named_and_kept_while_the_others_count(state: Path, raw: object) -> None:
    put("n2")
    value = json.loads(state.read_text())
    value["entries"].insert(0, raw)
    state.write_text(json.dumps(value))
    ledger = exclusions.read_ledger()
    assert [each.node for each in ledger.entries] == ["n2"]
    assert len(ledger.problems) == 1 and "entry 1 is ignored" in ledger.problems[0]
    put("n3")
    assert raw in json.loads(state.read_text())["entries"]


def test_an_entry_by_hand_needs_a_cluster_and_a_node_only(state: Path) -> None:
    state.parent.mkdir(parents=True)
    entries = [{"cluster": "c", "node": "n1"}, {"cluster": "c", "node": "n2", "until": "2001-01-01T00:00:00Z"}]
    state.write_text(json.dumps({"schema": 1, "entries": entries}))
    assert exclusions.excluded_nodes("c", NODES, 1).excluded == ("n1",)


def test_a_folder_that_cannot_be_written_is_one_line(state: Path) -> None:
    state.parent.parent.joinpath("state").write_text("a file in the folder's place")
    with pytest.raises(WorkError, match="not written"):
        put("n1")
    assert exclusions.read_ledger().problems


def test_a_name_that_no_node_has_is_refused(state: Path) -> None:
    with pytest.raises(UsageError, match="name nodes one by one"):
        put("n[1-4]")


def _writer(number: int) -> None:
    for each in range(5):
        put(f"n{number}-{each}")


def test_of_several_writers_none_loses_an_entry(state: Path) -> None:
    writers = [multiprocessing.get_context("fork").Process(target=_writer, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(exclusions.read_ledger().entries) == 20
