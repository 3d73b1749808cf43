"""python -m tests.cluster up | down | shell | status | run COMMAND..."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.cluster import Cluster, ClusterError, why_not


def main(words: list[str]) -> int:
    """Do one verb; returns the exit code."""
    reason = why_not()
    if reason:
        print(f"tests.cluster: {reason}", file=sys.stderr)
        return 4
    cluster = Cluster()
    verb = words[0] if words else ""
    if verb == "up":
        began = time.monotonic()
        cluster.up(owned=False)
        print(f"{cluster.spec.nodes} nodes up in {time.monotonic() - began:.1f} s; python -m tests.cluster shell")
        return 0
    if verb == "down":
        cluster.down()
        return 0
    if verb == "status":
        return subprocess.run(cluster.command(["sinfo", "-N", "-l"]), env=cluster.environment()).returncode
    if verb == "shell" or (verb == "run" and len(words) > 1):
        command = [os.environ.get("SHELL", "/bin/bash")] if verb == "shell" else words[1:]
        return subprocess.run(cluster.command(command), env=cluster.environment()).returncode
    print("usage: python -m tests.cluster up | down | shell | status | run COMMAND...", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ClusterError as error:
        print(f"tests.cluster: {error}", file=sys.stderr)
        sys.exit(1)
