"""One cluster for all Slurm tests; skipped, by name, where it cannot be brought up."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from phenomhpc.slurm.submit import PACKAGE
from tests.cluster import Cluster, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the cluster, and shares that of its worker."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            # They wait for Slurm, beside tests that compute on the same cores.
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The running cluster, all nodes idle at the start of the session."""
    reason = why_not()
    if reason:
        pytest.skip(f"no Slurm cluster: {reason}")
    compiling = subprocess.Popen([sys.executable, "-c", f"import {', '.join(_compiled_modules())}"])
    with Cluster(Path(tempfile.mkdtemp(prefix="phc"))) as running:
        assert compiling.wait() == 0
        yield running


def _compiled_modules() -> list[str]:
    """Modules with functions that are compiled when they are imported: once here, not in every run on every node."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if "\n@compiled(" in path.read_text()]
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]


@pytest.fixture(autouse=True)
def _forgiven(request: pytest.FixtureRequest) -> Iterator[None]:
    """A node that one test found sick is not excluded for the next."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").ledger.unlink(missing_ok=True)
