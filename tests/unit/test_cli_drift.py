"""phenomhpc node fingerprint | compare | lock | check --write, and cluster drift | gpfs, as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import mmfs
from tests.unit.fingerprints import LOCK, healthy

EXAMPLE = Path(__file__).with_name("site.lock.yml")


class Shell:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PHENOMHPC_SITE": str(folder / "etc" / "site.json")}

    def type(self, *words: str, code: int = 0, stdin: str = "") -> str:
        argv = [sys.executable, "-m", "phenomhpc", *words]
        done = subprocess.run(
            argv, cwd=self.folder, env=self.environment, input=stdin, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    def write(self, name: str, value: Any) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    made = Shell(tmp_path)
    made.write("site.lock.yml", LOCK)  # JSON is YAML
    return made


def test_a_lock_is_checked_and_written_for_the_nodes(shell: Shell) -> None:
    assert "site.lock.yml: small, 5 hosts, 2 packages pinned" in shell.type("node", "lock", "--check", "site.lock.yml")
    shell.type("node", "lock", "--check", "site.lock.yml", "--write", "etc/site.json")
    written = json.loads((shell.folder / "etc" / "site.json").read_text())
    assert written["derived"]["hosts"]["n1"] == ["compute"]
    assert json.loads(shell.type("node", "lock", "--json")) == written, "it is this host's lock now"
    shell.write("bad.yml", {**LOCK, "slurms": 1})
    said = shell.type("node", "lock", "--check", "bad.yml", code=2)
    assert (
        said.startswith("phenomhpc: bad.yml: slurms=1: no such key; keys here: schema, name, os")
        and said.count("\n") == 1
    )


def test_this_node_tells_its_fingerprint_and_is_like_itself(shell: Shell) -> None:
    table = shell.type("node", "fingerprint")
    assert "python.environment" in table and "package(s)" in table
    first = json.loads(shell.type("node", "fingerprint", "--json"))
    shell.write("a/n1.json", {**first, "host": "n1"})
    shell.write("a/n2.json", {**first, "host": "n2"})
    assert "2 node(s), no drift" in shell.type("node", "compare", "a/n1.json", "a/n2.json")
    assert "python.version" in shell.type("node", "fingerprint", "--short")
    measured = json.loads(shell.type("node", "fingerprint", "--site", "site.lock.yml", "--json"))
    assert "net.core.somaxconn" in measured["sysctls"]["live"]
    assert set(measured["files"]) >= {each["path"] for each in LOCK["managed"]["files"]}


def test_the_outlier_of_three_is_named(shell: Shell) -> None:
    for name in ("n1", "n2", "n3"):
        seen = healthy(name)
        if name == "n2":
            seen["packages"]["versions"]["libc6"] = "2.36-9"
        shell.write(f"f/{name}.json", seen)
    said = shell.type("node", "compare", "f/n1.json", "f/n2.json", "f/n3.json", code=1)
    assert "1 of 3 node(s) drifted: n2" in said and "divergent" in said and "package:libc6" in said
    report = json.loads(shell.type("cluster", "drift", "--from", "f", "--site", "site.lock.yml", "--json", code=1))
    assert report["verdict"] == "drift" and set(report["silent"]) == {"ctl", "n4"}
    assert [(each["node"], each["class"], each["fact"]) for each in report["findings"]] == [
        ("n2", "divergent", "package:libc6")
    ]
    only = ("--nodes", "n[1,3]")
    assert "2 node(s), no drift" in shell.type("cluster", "drift", "--from", "f", "--site", "site.lock.yml", *only)
    missing = shell.type("cluster", "drift", "--from", "f", "--nodes", "n[1,3-4]", code=4)
    assert "n4: could not tell: no fingerprint among the files" in missing


def test_hosts_are_asked_over_any_command(shell: Shell) -> None:
    """`env` stands for ssh: it runs the same words here, and the collector comes through the pipe."""
    said = shell.type("cluster", "drift", "--nodes", "a[1-2]", "--reach", "env HOST={host}")
    assert "2 node(s), no drift" in said
    unreached = shell.type("cluster", "drift", "--nodes", "a[1-2]", "--reach", "no-such-program {host}", code=4)
    assert "a1: could not tell: no-such-program: No such file or directory" in unreached
    failed = shell.type(
        "cluster", "drift", "--nodes", "a1", "--reach", "sh -c 'echo no route to {host} >&2; exit 255' --", code=4
    )
    assert "a1: could not tell: no route to a1" in failed
    slow = shell.type("cluster", "drift", "--nodes", "a1", "--reach", "sh -c 'echo hello' {host}", code=4)
    assert "unexpected answer: 'hello'" in slow
    shell.write("etc/site.json", LOCK)
    assert "--reach=ssh n1: says nowhere which host" in shell.type("cluster", "drift", "--reach", "ssh n1", code=2)


def test_what_is_missing_is_said_in_one_line(shell: Shell) -> None:
    assert "whom to ask is missing" in shell.type("cluster", "drift", code=2)
    assert "--nodes: 'n[1' is no host list" in shell.type("cluster", "drift", "--nodes", "n[1", code=2)
    assert "--from=gone: is no folder" in shell.type("cluster", "drift", "--from", "gone", code=2)
    (shell.folder / "a.json").write_text("{")
    assert "a.json: is no JSON" in shell.type("node", "compare", "a.json", code=2)
    shell.write("a.json", {"schema": 1})
    assert "a.json: is no fingerprint of schema 1" in shell.type("node", "compare", "a.json", code=2)
    shell.write("a.json", healthy())
    shell.write("b.json", healthy())
    assert "host n1 is in another of these files" in shell.type("node", "compare", "a.json", "b.json", code=2)
    assert "give the lock with --site" in shell.type("node", "check", "--write", "x", code=2)


def test_the_node_check_is_written_to_be_run(shell: Shell) -> None:
    assert "the node check of small" in shell.type("node", "check", "--write", "node_check", "--site", "site.lock.yml")
    assert (shell.folder / "node_check").stat().st_mode & 0o777 == 0o755
    done = subprocess.run([shell.folder / "node_check", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "takes no word but --dry-run" in done.stderr


def test_storage_scale_is_compared_from_what_its_commands_printed(shell: Shell) -> None:
    """Verified against a simulator, never run on Storage Scale."""
    gpfs = {"version": "5.2.2-1", "pagepool_mb": 1024, "attributes": {"default": {"maxFilesToCache": "100000"}}}
    shell.write("scale.yml", {**LOCK, "gpfs": gpfs})
    environment = mmfs.install(shell.folder / "bin", mmfs.cluster(nodes=4))

    def mm(*words: str) -> str:
        argv = [sys.executable, str(shell.folder / "bin" / words[0]), *words[1:]]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout

    for name, words in (
        ("states", ["mmgetstate", "-a", "-Y"]),
        ("health", ["mmhealth", "node", "show", "-N", "all", "-Y"]),
    ):
        (shell.folder / name).write_text(mm(*words))
    compare = ("cluster", "gpfs", "--site", "scale.yml", "--config", "-", "--states", "states", "--health", "health")
    said = shell.type(*compare, stdin=mm("mmlsconfig", "-Y"), code=1)
    assert said == "maxFilesToCache is 4000, not 100000\non ctl: mmchconfig maxFilesToCache=100000\n"
    mm("mmchconfig", "maxFilesToCache=100000")
    assert shell.type(*compare, stdin=mm("mmlsconfig", "-Y")) == "nothing to change\n"
    assert "-: no line of mmlsconfig -Y is in it" in shell.type(*compare, stdin="nothing", code=2)
    assert "no lock with a part gpfs" in shell.type("cluster", "gpfs", "--site", "site.lock.yml", code=2)
