"""Drift for any nodes: who is an outlier does not depend on order, nobody like most others is one, and no tampering is missed."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from phenomhpc.nodes.check import REASON, decide
from phenomhpc.nodes.drift import find_drift
from phenomhpc.nodes.facts import facts_of
from phenomhpc.nodes.gpfs import DEFAULT, change_commands, compare_config
from phenomhpc.nodes.hostlist import expand
from phenomhpc.nodes.lock_rules import says
from phenomhpc.nodes.majority import divergent
from phenomhpc.nodes.probe import parse_sysctls, sysctl_name, sysctl_path
from tests.unit.fingerprints import healthy, lock, short

VERSIONS = st.sampled_from(["1", "2", "3"])
NODES = st.lists(st.dictionaries(st.sampled_from(["kernel", "os", "rdma.version"]), VERSIONS), min_size=2, max_size=7)
# Packages of the healthy node, and one that it does not have.
PACKAGES = st.sampled_from(["bash", "libc6", "munge", "slurmd", "nmap"])


@given(NODES, st.randoms())
def test_outliers_are_the_same_in_any_order_and_never_most_nodes(
    values: list[dict[str, str]], random: st.DataObject
) -> None:
    nodes = {f"n{number}": short(**each) for number, each in enumerate(values)}
    names = list(nodes)
    random.shuffle(names)  # type: ignore[attr-defined]
    found = {(each.node, each.fact, each.found) for each in divergent(nodes, None)}
    assert found == {
        (each.node, each.fact, each.found) for each in divergent({name: nodes[name] for name in names}, None)
    }
    told = {name: facts_of(seen) for name, seen in nodes.items()}
    for fact in {fact for facts in told.values() for fact in facts}:
        counts = Counter(facts.get(fact, "absent") for facts in told.values())
        usual, times = counts.most_common(1)[0]
        named = {node for node, about, _ in found if about == fact}
        if len(counts) == 1:
            assert named == set()
        elif 2 * times > len(nodes):
            assert named == {node for node, facts in told.items() if facts.get(fact, "absent") != usual}
        else:
            assert named == set(nodes), "nobody can tell who is right"


@given(PACKAGES, st.text("0123456789.", min_size=1, max_size=6), st.sampled_from(["n1", "n2", "n3"]))
def test_a_changed_package_is_found_on_its_node_and_nowhere_else(name: str, version: str, node: str) -> None:
    nodes = {each: healthy(each) for each in ("n1", "n2", "n3")}
    versions = nodes[node]["packages"]["versions"]
    changed = versions.get(name) != version
    if name not in versions:
        nodes[node]["packages"]["manual"].append(name)
    versions[name] = version
    found = [(each.node, each.fact) for each in find_drift(nodes, lock()).findings]
    assert found == ([(node, f"package:{name}")] if changed else [])


STATES = st.sets(
    st.sampled_from(["IDLE", "MIXED", "ALLOCATED", "DOWN", "DRAIN", "DRAINED", "FAIL", "REBOOT_ISSUED", "PLANNED"])
)


@given(STATES, st.text(max_size=40), st.lists(st.text(min_size=1, max_size=20), max_size=3))
def test_nobody_elses_node_is_touched(states: set[str], reason: str, problems: list[str]) -> None:
    action, words = decide(states, reason, problems)
    drained = bool(states & {"DRAIN", "DRAINED", "DRAINING"})
    if drained and not reason.startswith(REASON):
        assert action == ""
    if action == "resume":
        assert drained and reason.startswith(REASON) and not problems and not states & {"DOWN", "FAIL", "REBOOT_ISSUED"}
    if action == "drain":
        assert problems and words.startswith(REASON)


@given(st.integers(0, 300), st.integers(0, 30), st.integers(1, 4))
def test_host_lists_have_the_width_they_are_written_with(first: int, more: int, width: int) -> None:
    last = first + more
    names = expand(f"n[{str(first).zfill(width)}-{str(last).zfill(width)}]")
    assert names == tuple(f"n{str(number).zfill(width)}" for number in range(first, last + 1))


NAMES = st.from_regex(r"[a-z]{1,4}(\.[a-z0-9_]{1,5}){1,3}", fullmatch=True)


@given(st.dictionaries(NAMES, st.from_regex(r"[0-9a-z]{1,5}( [0-9]{1,3})?", fullmatch=True), max_size=5))
def test_sysctl_files_are_read_as_they_are_written(values: dict[str, str]) -> None:
    text = "# words\n" + "".join(f" {name} = {value}\n\n" for name, value in values.items())
    assert dict(parse_sysctls(text.encode())) == values
    for name in values:
        assert sysctl_name(sysctl_path(name)) == name and sysctl_name(name) == name


CONFIG = st.dictionaries(
    st.tuples(st.sampled_from(["pagepool", "maxMBpS", "workerThreads"]), st.sampled_from([DEFAULT, "clients", "servers"])),
    st.sampled_from(["1", "2", "1G", "1024M"]),
)  # fmt: skip


@settings(max_examples=200)
@given(CONFIG, CONFIG)
def test_the_changes_make_it_so(found: dict[tuple[str, str], str], wanted: dict[tuple[str, str], str]) -> None:
    after = dict(found)
    for words in change_commands(compare_config(found, wanted)):
        where = words[words.index("-N") + 1] if "-N" in words else DEFAULT
        for name, _, value in (word.partition("=") for word in words[1].split(",")):
            if value == "DEFAULT":
                del after[name, where]
            else:
                after[name, where] = value
    assert compare_config(after, wanted) == ()
    assert {key: value for key, value in after.items() if key[0] not in {name for name, _ in wanted}} == {
        key: value for key, value in found.items() if key[0] not in {name for name, _ in wanted}
    }


@given(st.lists(st.integers(0, 999), min_size=1, max_size=4), st.integers(0, 9), st.sampled_from(["", "1:", "12:"]))
def test_a_version_says_its_beginnings_and_no_other(parts: list[int], digit: int, epoch: str) -> None:
    version = ".".join(map(str, parts))
    assert says(f"{epoch}{version}", version) and says(f"{epoch}{version}-1", version) and says(f"{version}.0", version)
    assert not says(f"{version}{digit}", version) and not says(f"x{version}", version)
