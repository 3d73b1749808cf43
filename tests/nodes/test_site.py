"""The Ansible bundle on booted machines, from bare roots to a Slurm that works; changes behind its back, rolls."""

from __future__ import annotations

import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.processes import wait_for
from tests.nodes.site import ANSIBLE, ENVIRONMENT, HEAD, SOAK, Site
from tests.nodes.stand_ins import NEWER, OLDER, TOOLKIT
from tests.nodes.wheels import LATER, LOCKED

RANDOM_KEY = "tr -dc a-f0-9 </dev/urandom | head -c 128"


def test_a_bare_root_becomes_a_cluster(site: Site) -> None:
    """Steps run across the nodes, batch jobs are accounted for, and each node is what the lock says."""
    ran = site.machines.run(HEAD, f"srun -N{len(site.nodes)} hostname")
    assert sorted(ran.split()) == site.nodes
    script = "#!/bin/sh\nsrun hostname\n"
    number = site.machines.run(HEAD, "cd /tmp && sbatch --parsable --wait -o out.%j", stdin=script)
    assert site.machines.run(site.nodes[0], f"cat /tmp/out.{number}") in site.nodes

    def accounted() -> bool:
        return site.machines.run(HEAD, f"sacct -n -X -P -o State,ExitCode -j {number}") == "COMPLETED|0:0"

    wait_for("slurmdbd has the job's end", accounted, 30)
    for node in site.nodes:
        assert site.machines.run(node, "sysctl -n net.core.somaxconn") == "8192"
        assert site.machines.run(node, f"dpkg-query -W -f '${{Version}}' {TOOLKIT}") == OLDER
        assert {"slurmd", "munge", TOOLKIT} <= set(site.machines.run(node, "apt-mark showhold").split())
        assert site.machines.run(node, "stat -c '%a %U' /etc/munge/munge.key") == "400 munge"
        assert site.site_json(node)["derived"]["hosts"][node] == ["compute"]


def test_a_second_run_changes_nothing(site: Site) -> None:
    """The roles find that all is as they would make it."""
    played = site.play("site.yml")
    assert played.code == 0, played.changes
    assert sum(played.changed.values()) == 0, played.changes


def test_check_mode_changes_nothing_and_drift_is_clean(site: Site) -> None:
    """A cluster that nobody changed is reported so, by Ansible's check mode as by the fingerprints."""
    played = site.play("site.yml", "--check", "--diff")
    assert played.code == 0, played.changes
    assert sum(played.changed.values()) == 0, played.changes
    report = site.drift()
    assert (report["verdict"], report["findings"], report["silent"], report["code"]) == ("clean", [], {}, 0)


# node, what somebody does there, class, fact
TAMPERINGS = (
    (
        "n1",
        f"dpkg -i /srv/stand-ins/{TOOLKIT}_{NEWER}_all.deb; apt-mark hold {TOOLKIT}",
        "managed",
        f"package:{TOOLKIT}",
    ),
    ("n1", "apt-mark unhold slurmd", "managed", "hold:slurmd"),
    (
        "n2",
        "echo net.core.somaxconn=128 > /etc/sysctl.d/zz-rogue.conf",
        "unmanaged",
        "file:/etc/sysctl.d/zz-rogue.conf",
    ),
    (
        "n2",
        f"printf 'Package: {TOOLKIT}\\nPin: version {NEWER}\\nPin-Priority: 1002\\n' > /etc/apt/preferences.d/00-rogue",
        "unmanaged",
        "file:/etc/apt/preferences.d/00-rogue",
    ),
    ("n1", "apt-get install -y phenomhpc-stray", "unmanaged", "package:phenomhpc-stray"),
    ("n2", "chmod 0666 /etc/slurm/gres.conf", "managed", "file:/etc/slurm/gres.conf"),
    ("n2", "systemctl disable slurmd", "managed", "unit:slurmd.service"),
    ("n1", "touch /etc/slurm/job_submit.lua", "unmanaged", "file:/etc/slurm/job_submit.lua"),
    ("n1", f"{RANDOM_KEY} > /etc/munge/munge.key", "managed", "file:/etc/munge/munge.key"),
    (
        "n2",
        "sed -i s/SlurmdTimeout=300/SlurmdTimeout=30/ /etc/slurm/slurm.conf",
        "managed",
        "file:/etc/slurm/slurm.conf",
    ),
    (
        "n1",
        "sed -i s/unlimited/8192/ /etc/security/limits.d/90-phenomhpc.conf",
        "managed",
        "file:/etc/security/limits.d/90-phenomhpc.conf",
    ),
    (HEAD, "sysctl -w net.core.somaxconn=128", "managed", "sysctl:net.core.somaxconn"),
    ("n2", "systemctl stop munge", "managed", "unit:munge.service"),
)
# On the shared file system, and so seen by every host.
UPGRADED = f"PIP_FIND_LINKS=/shared/small {ENVIRONMENT}/bin/pip install -q --no-index tiny=={LATER}"


def test_another_lock_makes_another_environment_beside_the_old(site: Site) -> None:
    """The link is switched, and what runs goes on with the files it has."""
    before = site.machines.run(HEAD, f"readlink {ENVIRONMENT}")
    site.use(site.small)
    played = site.play("site.yml", "--tags", "manifest,node_health,python_env,fingerprint")
    assert played.code == 0, played.changes
    for name in site.machines.names:
        assert site.machines.run(name, f"readlink {ENVIRONMENT}") != before
        assert site.machines.run(name, f"{ENVIRONMENT}/bin/python -c 'import tiny; print(tiny.__version__)'") == LOCKED
    assert site.machines.run(site.nodes[0], f"{before}/bin/phenomhpc --version").startswith("phenomhpc ")


def test_tampering_is_named_and_healed(site: Site) -> None:
    """Every change is one finding, of its class, on its node, and nothing else is said; site.yml undoes all of them."""
    for node, command, _, _ in TAMPERINGS:
        site.machines.run(node, command)
    site.machines.run("n1", UPGRADED)
    report = site.drift()
    found = {(each["node"], each["class"], each["fact"]) for each in report["findings"]}
    upgraded = {(name, "managed", "python.environment") for name in site.machines.names}
    assert found == {(node, kind, fact) for node, _, kind, fact in TAMPERINGS} | upgraded
    assert (report["verdict"], report["code"]) == ("drift", 1)
    assert len(report["findings"]) == len(found)
    healed = site.play("site.yml")
    assert healed.code == 0, healed.changes
    after = site.drift()
    assert (after["verdict"], after["findings"]) == ("clean", [])
    assert site.machines.run("n2", f"{ENVIRONMENT}/bin/python -c 'import tiny; print(tiny.__version__)'") == LOCKED
    kept = site.machines.run("n2", "cat /var/lib/phenomhpc/removed/etc/sysctl.d/zz-rogue.conf")
    assert kept == "net.core.somaxconn=128"
    assert sorted(site.machines.run(HEAD, f"srun -N{len(site.nodes)} hostname").split()) == site.nodes


@pytest.fixture
def _released(site: Site) -> Iterator[None]:
    """The lock as it was, all nodes idle, whatever a test did with them."""
    version = _pin(site)["version"]
    yield
    _pin(site)["version"] = version
    for node in site.nodes:
        site.machines.execute(HEAD, f"scontrol update nodename={node} state=resume")


def _pin(site: Site) -> dict[str, str]:
    pin: dict[str, str] = next(each for each in site.lock["packages"] if each["name"] == TOOLKIT)
    return pin


def _reason(site: Site, node: str) -> str:
    return site.machines.run(HEAD, f"sinfo -h -N -n {node} -o %E")


def _toolkit(site: Site, node: str) -> str:
    return site.machines.run(node, f"dpkg-query -W -f '${{Version}}' {TOOLKIT}")


@pytest.mark.usefixtures("_released")
def test_a_roll_disturbs_no_job_and_leaves_others_drains(site: Site) -> None:
    """A node is changed and rebooted after its job has ended, and given back; one that an administrator drained stays so."""
    first, last = site.nodes[0], site.nodes[-1]
    site.machines.run(HEAD, f"scontrol update nodename={last} state=drain reason='disk, ticket 7'")
    script = f"#!/bin/sh\nsleep 20\n[ $(dpkg-query -W -f '${{Version}}' {TOOLKIT}) = {OLDER} ]\n"
    number = site.machines.run(HEAD, f"cd /tmp && sbatch --parsable -w {first} -o /dev/null", stdin=script)
    wait_for("the job runs", lambda: site.machines.run(HEAD, f"squeue -h -j {number} -o %T") == "RUNNING", 60)
    _pin(site)["version"] = NEWER
    for node in site.nodes:
        site.machines.run(node, "touch /run/before")
    played = site.play("roll.yml", "-e", "roll_poll_s=1", "-e", "roll_reboot=true")
    assert played.code == 0, played.changes
    assert not any(site.machines.execute(node, "test -e /run/before").returncode == 0 for node in site.nodes), (
        "rebooted"
    )
    assert site.machines.run(HEAD, f"sacct -n -X -P -o State,ExitCode -j {number}") == "COMPLETED|0:0"
    assert [_toolkit(site, node) for node in site.nodes] == [NEWER] * len(site.nodes)
    states = site.states()
    assert states[first] == "idle"
    assert states[last] == "drained"
    assert _reason(site, last) == "disk, ticket 7"


@pytest.mark.usefixtures("_released")
def test_an_unobtainable_pin_stops_the_roll_at_one_node(site: Site) -> None:
    """The first node stays drained with our reason, the others are untouched; the next roll goes on there."""
    before = _toolkit(site, site.nodes[-1])
    _pin(site)["version"] = "9.9.9-1"
    played = site.play("roll.yml", "-e", "roll_poll_s=1")
    assert played.code != 0
    assert "9.9.9-1" in played.output
    states = site.states()
    assert [states[node] for node in site.nodes] == ["drained", *["idle"] * (len(site.nodes) - 1)]
    assert _reason(site, site.nodes[0]) == "phenomhpc: roll"
    assert _toolkit(site, site.nodes[-1]) == before
    assert "9.9.9-1" not in site.machines.run(
        site.nodes[-1], "cat /etc/apt/preferences.d/90-phenomhpc /etc/phenomhpc/site.json"
    )
    _pin(site)["version"] = before
    again = site.play("roll.yml", "-e", "roll_poll_s=1", "-l", site.nodes[0])
    assert again.code == 0, again.changes
    # Slurm takes a moment to show it.
    wait_for("the first node is given back", lambda: site.states()[site.nodes[0]] == "idle", 30)


@pytest.mark.skipif(not SOAK, reason="a soak test: PHENOMHPC_SOAK is not set")
@pytest.mark.usefixtures("_released")
def test_a_node_that_does_not_come_up_with_the_pinned_kernel_stays_drained(site: Site) -> None:
    """It was rebooted for it; the roll stops there, and the others are untouched."""
    site.lock["kernel"] = {"release": "9.9.9-1"}
    for node in site.nodes:
        site.machines.run(node, "touch /run/before")
    try:
        played = site.play("roll.yml", "-e", "roll_poll_s=1")
    finally:
        del site.lock["kernel"]
    assert played.code != 0
    rebooted = [node for node in site.nodes if site.machines.execute(node, "test -e /run/before").returncode]
    assert rebooted == site.nodes[:1]
    assert [site.states()[node] for node in site.nodes] == ["drained", *["idle"] * (len(site.nodes) - 1)]
    assert _reason(site, site.nodes[0]) == "phenomhpc: roll"
    healed = site.play("site.yml")
    assert healed.code == 0, healed.changes


def test_a_new_munge_key_everywhere(site: Site) -> None:
    """After the rotation credentials pass between all hosts, made with the new key."""
    old = site.machines.run(HEAD, "cat /etc/munge/munge.key")
    site.secrets["munge_key"] = site.machines.run(HEAD, RANDOM_KEY)
    site.all_secrets.append(site.secrets["munge_key"])
    played = site.play("rotate_munge_key.yml")
    assert played.code == 0, played.changes
    for name in site.machines.names:
        assert site.machines.run(name, "cat /etc/munge/munge.key") == site.secrets["munge_key"] != old
    assert sorted(site.machines.run(HEAD, f"srun -N{len(site.nodes)} hostname").split()) == site.nodes


def test_a_lock_with_parts_that_do_not_fit_touches_no_host(site: Site) -> None:
    """The message names the key, the value and the way out; no task ran on a host."""
    site.lock["slurm"]["partitions"][0]["gpus_per_node"] = 8
    try:
        played = site.play("site.yml")
    finally:
        site.lock["slurm"]["partitions"][0]["gpus_per_node"] = 0
    assert played.code != 0
    told = " ".join(played.output.split())
    assert re.search(r"slurm\.partitions\.main\.gpus_per_node=8: .*lower it", told)
    assert sum(played.changed.values()) == 0
    assert "[users" not in played.output


def _places(site: Site, words: list[str], outputs: list[str]) -> set[str]:
    """Where one of `words` can be read: in what Ansible printed, a host's journal and logs, files that others may read."""
    found = {"output" for word in words for output in outputs if word in output}
    look = (
        "cat > /run/patterns; journalctl -q --no-pager | grep -q -F -f /run/patterns && echo journal;"
        "grep -r -l -F -f /run/patterns /var/log /tmp /var/tmp /root/.ansible;"
        "find /etc /var/lib /usr/local -type f -perm /044 -print0 | xargs -0 grep -l -F -f /run/patterns;"
        "rm /run/patterns"
    )
    for name in site.machines.names:
        said = site.machines.run(name, look, check=False, stdin="\n".join(words))
        found |= {f"{name}:{line}" for line in said.splitlines()}
    return found


def test_secrets_are_in_no_output_and_no_log(site: Site) -> None:
    """Not in what Ansible printed, diffs included; not in a host's logs, nor in a file that others than the owner may read."""
    assert "PLAY RECAP" in site.outputs[0]
    assert _places(site, [*site.all_secrets, *site.secrets.values()], site.outputs) == set()


def test_a_secret_that_was_told_is_found(site: Site) -> None:
    """The search that finds none of ours finds one that was put there, wherever it was."""
    word = secrets.token_hex(16)
    plant = (
        'read -r word; logger -- "key $word"; echo "key=$word" > /var/log/planted.log; echo $word > /tmp/planted;'
        "echo $word > /etc/planted; install -m 0600 /etc/planted /etc/owners"
    )
    site.machines.run("n1", plant, stdin=word + "\n")
    planted = {f"n1:{place}" for place in ("journal", "/var/log/planted.log", "/tmp/planted", "/etc/planted")}
    wait_for("the journal has it", lambda: "n1:journal" in _places(site, [word], []), 30)
    found = _places(site, [word], [f"ok: {word}"])
    assert {"output", *planted} <= found
    assert "n1:/etc/owners" not in found, "its owner may have it"
    site.machines.run("n1", "rm /var/log/planted.log /tmp/planted /etc/planted /etc/owners")


def test_lint() -> None:
    """ansible-lint's strictest profile and yamllint have nothing to say."""
    for argv in (["ansible-lint", "--offline", "--nocolor"], ["yamllint", "--strict", "."]):
        command = [str(Path(sys.executable).parent / argv[0]), *argv[1:]]
        path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/root"}
        done = subprocess.run(command, cwd=ANSIBLE, env=path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, shlex.join(argv) + done.stdout[-3000:] + done.stderr[-3000:]
