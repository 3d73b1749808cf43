"""The node check: what it makes of what it sees, what it does to the node in Slurm, and the file that it is."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.errors import UsageError
from phenomhpc.nodes import check
from phenomhpc.nodes.check import REASON, checks_of, decide, is_ours, number, parse_node, rows_of, xids
from phenomhpc.nodes.check_program import check_program
from phenomhpc.nodes.lock import Lock
from phenomhpc.nodes.lock_file import lock_from, read_lock, site_json

EXAMPLE = Path(__file__).with_name("site.lock.yml")
HOST = socket.gethostname().partition(".")[0]
SHOWN = (
    "NodeName=n1 Arch=x86_64 CoresPerSocket=1 State={state} ThreadsPerCore=1 Partitions=all "
    "BootTime=2026-01-31T12:00:00 AllocTRES= {reason}\n"
)


def shown(state: str, reason: str = "") -> str:
    return SHOWN.format(state=state, reason=f"Reason={reason} [root@2026-01-31T12:00:00]" if reason else "")


def test_a_nodes_state_and_reason_are_read() -> None:
    assert parse_node(shown("IDLE")) == ({"IDLE"}, "")
    assert parse_node(shown("MIXED+DRAIN", f"{REASON}gpu: 7 GPUs")) == ({"MIXED", "DRAIN"}, f"{REASON}gpu: 7 GPUs")
    assert parse_node(shown("DOWN*+NOT_RESPONDING", "Not responding"))[0] == {"DOWN", "NOT_RESPONDING"}


OURS, THEIRS = f"{REASON}gpu: 7 GPUs", "fans replaced on Monday"


@pytest.mark.parametrize(
    ("state", "reason", "problems", "action"),
    [
        ("IDLE", "", ["gpu: 7 GPUs"], ("drain", OURS)),
        ("ALLOCATED", "", ["gpu: 7 GPUs"], ("drain", OURS)),
        ("IDLE", "", [], ("", "")),
        ("IDLE+DRAIN", OURS, ["gpu: 7 GPUs"], ("", "")),
        ("IDLE+DRAIN", OURS, ["mount /x: no answer within 10 s"], ("drain", f"{REASON}mount /x: no answer within 10 s")),
        ("IDLE+DRAIN", OURS, [], ("resume", "")),
        ("MIXED+DRAIN", OURS, [], ("resume", "")),
        ("IDLE+DRAIN", THEIRS, [], ("", "")),
        ("IDLE+DRAIN", THEIRS, ["gpu: 7 GPUs"], ("", "")),
        ("IDLE+DRAIN", "phenomhpc: roll", [], ("", "")),
        ("IDLE+DRAIN", "", [], ("", "")),
        ("IDLE+DRAIN", f"see {REASON}", [], ("", "")),
        ("DOWN+DRAIN", OURS, [], ("", "")),
        ("DOWN", "Not responding", ["gpu: 7 GPUs"], ("", "")),
        ("IDLE+DRAIN+REBOOT_ISSUED", OURS, [], ("", "")),
        ("IDLE+DRAIN+MAINTENANCE", OURS, [], ("", "")),
        ("", "", [], ("", "")),
    ],
)  # fmt: skip
def test_only_what_it_drained_itself_is_resumed(
    state: str, reason: str, problems: list[str], action: tuple[str, str]
) -> None:
    assert decide(*parse_node(shown(state, reason)), problems) == action


def test_a_long_reason_is_cut() -> None:
    assert len(decide({"IDLE"}, "", ["x" * 500])[1]) == 200


def test_xids_of_applications_are_passed_over() -> None:
    text = (
        "NVRM: Xid (PCI:0000:17:00): 79, pid=1, GPU has fallen off the bus.\nNVRM: Xid (PCI:0000:18:00): 31, pid=2, x\n"
    )
    assert xids(text + text, [31]) == ["GPU 0000:17:00: Xid 79"]
    assert (
        rows_of("0, [N/A], 3\n\n") == [["0", "", "3"]] and number("400 Gb/sec (4X NDR)") == 400.0 and number("x") == 0.0
    )


def lock(**parts: Any) -> Lock:
    """The lock of this very machine, as a node of a plain site."""
    nodes = [{"name": "n", "nodes": HOST, "cpus": 2, "memory_mb": 1000, "gpus": 2 if "nvidia" in parts else 0}]
    partitions = [{"name": "all", "nodes": HOST, "default": True}]
    slurm = {"cluster": "plain", "controller": "ctl", "node_types": nodes, "partitions": partitions}
    return lock_from({"schema": 1, "name": "plain", "slurm": slurm, **parts}, "site.lock.yml")


def test_the_lock_says_what_is_checked() -> None:
    assert checks_of(site_json(lock()), HOST) == {}
    whole = set(checks_of(site_json(read_lock(EXAMPLE)), "dgx01"))
    assert whole == {
        "gpu", "gpu memory", "xid", "pcie", "rdma", "gpfs", "mount /gpfs/fs1", "space /tmp", "space /var", "unit munge.service",
        "clock", "memlock", "kernel",
    }  # fmt: skip
    assert not {"gpu", "xid", "pcie"} & set(checks_of(site_json(read_lock(EXAMPLE)), "login1"))


class Node:
    """The generated program, with a scontrol and an nvidia-smi of our own in its PATH."""

    def __init__(self, folder: Path, **parts: Any) -> None:
        self.tools = folder / "tools"
        self.tools.mkdir()
        self.state = folder / "node"
        self.calls = folder / "calls"
        self.show("IDLE")
        self.tool("scontrol", f'echo "$@" >> {self.calls}\n[ "$1" != show ] || cat {self.state}')
        checks = {"path": [str(self.tools), "/usr/bin", "/bin"], "each_s": 3, **parts.pop("checks", {})}
        self.program = folder / "node_check"
        self.program.write_text(check_program(lock(checks=checks, **parts)))
        self.program.chmod(0o755)

    def tool(self, name: str, body: str) -> None:
        (self.tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.tools / name).chmod(0o755)

    def show(self, state: str, reason: str = "") -> None:
        self.state.write_text(shown(state, reason))

    def check(self, *words: str, code: int = 0) -> str:
        argv = [sys.executable, "-I", "-S", str(self.program), *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd="/")
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    def updates(self) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if line.startswith("update")]


def test_the_program_is_one_file_of_the_standard_library(tmp_path: Path) -> None:
    text = check_program(lock())
    assert (
        text.startswith("#!/usr/bin/python3 -IS\n")
        and "phenomhpc." not in text.replace("phenomhpc.jobs", "").split("import")[0]
    )
    assert "from phenomhpc" not in text and "import phenomhpc" not in text
    compile(text, "node_check", "exec")
    # Nothing of ours, nothing of site-packages, no variable of Python's has a say.
    (tmp_path / "json.py").write_text("raise SystemExit('a user\\'s module was imported')")
    node = Node(tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(node.program), "--dry-run"],
        capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_fit_node_is_left_alone(tmp_path: Path) -> None:
    node = Node(tmp_path, checks={"free_mb": {"/": 1}})
    assert f"{HOST}: fit; " in node.check() and node.updates() == []


def test_a_sick_node_is_drained_with_the_culprit_and_resumed_when_it_is_well(tmp_path: Path) -> None:
    node = Node(tmp_path, checks={"mounts": ["/no/such/mount"]})
    assert "mount /no/such/mount: is not mounted" in node.check(code=1)
    assert node.updates() == [f"update NodeName={HOST} State=DRAIN Reason={REASON}mount /no/such/mount: is not mounted"]
    well = Node(tmp_path / "well", checks={}) if (tmp_path / "well").mkdir() is None else node
    well.show("IDLE+DRAIN", f"{REASON}mount /no/such/mount: is not mounted")
    assert "fit, resumed" in well.check() and well.updates() == [f"update NodeName={HOST} State=RESUME"]
    well.show("IDLE+DRAIN", "fans, says the administrator")
    well.calls.unlink()
    assert "resumed" not in well.check() and well.updates() == []


def test_what_hangs_is_the_culprit_and_holds_nothing_up(tmp_path: Path) -> None:
    """A driver that does not answer: the check of it is killed with what it started; the others tell."""
    node = Node(
        tmp_path,
        nvidia={"driver": "570.1", "model": "NVIDIA H100"},
        checks={"each_s": 1.5, "mounts": ["/no/such/mount"]},
    )
    node.tool("nvidia-smi", "exec sleep 600")
    began = time.monotonic()
    said = node.check("--dry-run", code=1)
    assert time.monotonic() - began < 10
    assert "node_check: gpu: no answer within 1.5 s" in said and "mount /no/such/mount: is not mounted" in said
    assert node.updates() == []


def test_gpus_are_checked_by_number_model_driver_and_memory(tmp_path: Path) -> None:
    """The form of NVIDIA's documentation; never run on such hardware."""
    node = Node(
        tmp_path,
        nvidia={"driver": "570.1", "model": "NVIDIA H100"},
        checks={"pcie": {"generation": 5, "width": 16}},
    )
    node.tool(
        "nvidia-smi",
        'case "$*" in *name*) echo "0, NVIDIA A100, 565.7";; *ecc*) echo "0, 3, [N/A]";; *remapped*) echo "0000:17:00, 1, 0";;'
        ' *pcie*) echo "0, 4, 8";; esac',
    )
    said = node.check("--dry-run", code=1)
    for words in (
        "gpu: 1 GPUs where 2 belong", "gpu: driver 565.7, not 570.1", "gpu: GPU 0: NVIDIA A100, not NVIDIA H100",
        "gpu memory: GPU 0: 3 uncorrected memory errors", "gpu memory: GPU 0000:17:00: memory rows wait for a reset",
        "pcie: GPU 0: PCIe generation 4, not 5", "pcie: GPU 0: 8 PCIe lanes, not 16",
    ):  # fmt: skip
        assert f"node_check: {words}\n" in said, said


def test_a_clock_that_is_off_or_free_is_named(tmp_path: Path) -> None:
    node = Node(tmp_path, time={"servers": ["ntp1"], "max_offset_s": 0.1})
    line = "A29FC801,ntp1,3,1700000000.1,{offset},0.00001,0.00002,-1.2,0.0,0.01,0.001,0.002,64.1,{leap}"
    node.tool("chronyc", f"echo {line.format(offset='0.000012', leap='Normal')}")
    assert "fit" in node.check("--dry-run")
    node.tool("chronyc", f"echo {line.format(offset='-0.75', leap='Normal')}")
    assert "clock: -0.750 s off, more than 0.1" in node.check("--dry-run", code=1)
    node.tool("chronyc", f"echo '{line.format(offset='0.0', leap='Not synchronised')}'")
    assert "clock: not synchronised" in node.check("--dry-run", code=1)


def test_while_slurm_does_not_answer_nothing_is_changed(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.tool("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert "nothing is changed: scontrol: " in node.check(code=1)


def test_root_runs_no_file_that_others_may_write(tmp_path: Path) -> None:
    """Of this very test's folder the mode is what counts; who is not root cannot run it as root's either."""
    node = Node(tmp_path)
    if os.geteuid() == 0:
        node.program.chmod(0o777)
        assert "nothing is done: " in node.check(code=2) and "may be written by others than root" in node.check(code=2)
        assert node.updates() == []
        node.program.chmod(0o755)
        os.chown(node.program, 12345, 12345)
        assert "may be written by others" in node.check(code=2)
    assert is_ours("/") == "" and stat.S_ISDIR(Path("/").stat().st_mode)


def test_checks_that_slurm_would_cut_off_are_refused() -> None:
    with pytest.raises(UsageError, match=r"with two questions to Slurm of 8 s each it is more than checks.total_s=50"):
        check_program(lock(checks={"each_s": 40}))


def test_the_program_has_the_lock_inside(tmp_path: Path) -> None:
    text = check_program(lock())
    line = next(line for line in text.splitlines() if line.startswith("GIVEN_SITE = "))
    assert json.loads(eval(line.removeprefix("GIVEN_SITE = "))) == site_json(lock())
    assert check.GIVEN_SITE == ""
