"""Memory on a cluster without cgroups: slurmstepd looks, and kills the whole step with its guard, which cannot say a word."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.settings import ClusterSpec
from tests.slurm.provoking import Lab, of_kind

# Held long enough to be seen: slurmstepd looks every second.  The programs beside it need some 250 MB.
MEM_MB, HELD_MB = 600, 700
SCRIPT = f"""
import os, time
block = bytearray({HELD_MB} << 20)
block[::4096] = bytes(len(block[::4096]))
time.sleep(20)
open(os.environ["PHENOMHPC_OUTPUT"] + "/done", "w").close()
"""


@pytest.mark.timeout(1500)
def test_what_slurmstepd_killed_gets_more_memory_and_is_done(tmp_path: Path) -> None:
    spec = ClusterSpec(nodes=2, cgroups=False)
    with Cluster(Path(tempfile.mkdtemp(prefix="phco")), spec) as cluster:
        lab = Lab(cluster, tmp_path)
        (tmp_path / "hold.py").write_text(SCRIPT)
        words = ["cluster.gate=false", f"cluster.mem_mb={MEM_MB}", "--", sys.executable, "hold.py"]
        run = lab.leave("run", "--runs", "runs", *words)
        outcome = lab.ended(run)
        assert (outcome["state"], outcome["exit_code"]) == ("finished", 0), outcome
        assert [event["mem_mb"] for event in of_kind(run, "submitted")] == [MEM_MB, 2 * MEM_MB]
        first = of_kind(run, "decided")[0]
        assert (first["action"], first["classes"]) == ("more_memory", {"oom": 1})
        assert not of_kind(run, "failed"), "the guard had time to speak"
        assert (run.output / "done").is_file()
        told = json.loads(lab.type("why", run.id, "--json").stdout)
        assert "1 oom on n" in told["earlier"][0] and f"of {MEM_MB} MiB" in told["earlier"][0]
