"""One site of booted machines for all tests of the Ansible bundle; skipped, by name, where it cannot be booted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes import images, stand_ins
from tests.nodes.machines import Machines, why_not
from tests.nodes.site import HEAD, SOAK, Site

# Two nodes, so that one can be compared with the other; PHENOMHPC_SOAK boots three.
NODES = ("n1", "n2", "n3") if SOAK else ("n1", "n2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each waits for Ansible on several machines."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.nodes)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def bare() -> Iterator[Site]:
    """Booted machines with nothing on them."""
    reason = why_not()
    if reason:
        pytest.skip(f"no booted machines: {reason}")
    packages = images.packages()
    with tempfile.TemporaryDirectory(prefix="phn-") as folder:
        ours = Path(folder) / "stand-ins"
        ours.mkdir()
        stand_ins.build(ours)
        root = Path(folder) / "machines"
        root.mkdir()
        with Machines(root, [HEAD, *NODES], [packages, ours], [images.wheels()]) as machines:
            yield Site(machines, packages, NODES[:-1])


@pytest.fixture(scope="session")
def site(bare: Site) -> Site:
    """The same after site.yml; the last node joined later."""
    for playbook, *words in (["site.yml"], ["add_node.yml", "-e", f"add_node={NODES[-1]}"]):
        if words:
            bare.join(NODES[-1])
        played = bare.play(playbook, *words)
        assert played.code == 0, played.changes
    return bare
