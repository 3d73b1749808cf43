#!/usr/bin/env python3
"""mmlsconfig, mmchconfig, mmgetstate, mmhealth ... over a state file, by the name it is called by.  Standard library only.

A simulator, labelled so: it was never compared with Storage Scale.  Forms follow IBM's manuals: -Y prints a HEADER line and
colon-separated rows with percent-encoded values.  The state file says how it is:

    {cluster, host (empty: the one that asks), nodes: {name: {state, mounts}}, classes: {class: nodes}, file_systems,
     config: {class: {attribute: value}}, health: {"node/component/entity": status}, slow_s: {command: seconds},
     calls: [every command that was run]}
"""

import fcntl
import json
import os
import socket
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

DEFAULTS = {
    "pagepool": "1G",
    "maxFilesToCache": "4000",
    "maxStatCache": "1000",
    "workerThreads": "48",
    "maxMBpS": "2048",
}
KNOWN = {*DEFAULTS, "verbsRdma", "autoload", "clusterName", "maxblocksize"}


def fail(name, words):
    print(name + ": " + words, file=sys.stderr)
    sys.exit(1)


def rows(command, section, names, values):
    head = [command, section, "HEADER", "version", "reserved", "reserved", *names]
    print(":".join(head) + ":")
    for row in values:
        print(
            ":".join([command, section, "0", "1", "", "", *(quote(str(value), safe=" /-_.()") for value in row)]) + ":"
        )


def chosen(state, words, name):
    """Nodes that -N names (nodes, classes, all), else this one; -a is all."""
    if "-a" in words:
        return list(state["nodes"])
    if "-N" not in words:
        return [state["host"] or socket.gethostname()]
    found = []
    for each in words[words.index("-N") + 1].split(","):
        if each == "all":
            found += state["nodes"]
        elif each in state["classes"]:
            found += state["classes"][each]
        elif each in state["nodes"]:
            found.append(each)
        else:
            fail(name, f"Incorrect node {each} specified for command.")
    return found


def mmlsconfig(state, words):
    table = [("clusterName", state["cluster"], "")]
    for where, attributes in state["config"].items():
        table += [(name, value, "" if where == "default" else where) for name, value in attributes.items()]
    if "-Y" in words:
        rows("mmlsconfig", "", ("configParameter", "value", "nodeList"), table)
    else:
        for name, value, where in table:
            print(("[" + where + "] " if where else "") + name + " " + value)


def mmchconfig(state, words):
    where = words[words.index("-N") + 1] if "-N" in words else "default"
    if where != "default" and where not in state["classes"] and where not in state["nodes"]:
        fail("mmchconfig", f"Incorrect node {where} specified for command.")
    pairs = [word.split("=", 1) for word in words[0].split(",")]
    for name, _ in pairs:
        if name.lower() not in {each.lower() for each in KNOWN}:
            fail("mmchconfig", f"Attribute {name} is not valid.")
    for name, value in pairs:  # all or none
        settings = state["config"].setdefault(where, {})
        key = next((each for each in settings if each.lower() == name.lower()), name)
        settings.pop(key, None)
        if value != "DEFAULT":
            settings[key] = value
        elif where == "default" and name in DEFAULTS:
            settings[name] = DEFAULTS[name]
    print("mmchconfig: Command successfully completed")


def mmgetstate(state, words):
    names = chosen(state, words, "mmgetstate")
    active = sum(each["state"] == "active" for each in state["nodes"].values())
    table = [
        (name, position, state["nodes"][name]["state"], 1, active, len(state["nodes"]), "", "(undefined)")
        for position, name in enumerate(names, 1)
    ]
    heads = ("nodeName", "nodeNumber", "state", "quorum", "nodesUp", "totalNodes", "remarks", "cnfsState")
    rows("mmgetstate", "", heads, table)


def mmhealth(state, words):
    if words[:2] != ["node", "show"]:
        fail("mmhealth", "only `node show` is simulated")
    heads = (
        "node",
        "component",
        "entityname",
        "entitytype",
        "event",
        "arguments",
        "activesince",
        "identifier",
        "ishidden",
    )
    rows("mmhealth", "Event", heads, [])
    table = []
    for name in chosen(state, words, "mmhealth"):
        node = state["nodes"][name]
        up = "HEALTHY" if node["state"] == "active" else "FAILED"
        parts = {("GPFS", name): up, ("NETWORK", name): "HEALTHY"}
        for system in state["file_systems"]:
            parts["FILESYSTEM", system] = "HEALTHY" if system in node["mounts"] and up == "HEALTHY" else "FAILED"
        for key, status in state["health"].items():
            whose, component, entity = key.split("/")
            if whose == name:
                parts[component, entity] = status
        worst = next((status for status in ("FAILED", "DEGRADED") if status in parts.values()), "HEALTHY")
        parts = {("NODE", name): worst, **parts}
        for (component, entity), status in parts.items():
            kind = "FILESYSTEM" if component == "FILESYSTEM" else "NODE"
            table.append((name, component, entity, kind, status, "2026-01-31 12:00:00.000000 UTC"))
    rows("mmhealth", "State", ("node", "component", "entityname", "entitytype", "status", "laststatuschange"), table)


def mmstartup(state, words):
    for name in chosen(state, words, "mmstartup"):
        state["nodes"][name]["state"] = "active"


def mmshutdown(state, words):
    for name in chosen(state, words, "mmshutdown"):
        state["nodes"][name].update(state="down", mounts=[])


def mmmount(state, words):
    for name in chosen(state, words, "mmmount"):
        node = state["nodes"][name]
        if node["state"] != "active":
            fail("mmmount", f"{name}: GPFS is not running.")
        if words[0] not in state["file_systems"]:
            fail("mmmount", f"File system {words[0]} is not known.")
        node["mounts"] = sorted({*node["mounts"], words[0]})


def mmumount(state, words):
    for name in chosen(state, words, "mmumount"):
        node = state["nodes"][name]
        node["mounts"] = [each for each in node["mounts"] if each != words[0]]


def mmlscluster(state, words):
    rows("mmlscluster", "clusterSummary", ("clusterName",), [(state["cluster"],)])


def main():
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    path = Path(os.environ.get("PHENOMHPC_MMFS_STATE") or Path(sys.argv[0]).resolve().with_name("state.json"))
    with changing(path) as state:
        state["calls"].append([name, *words])
    time.sleep(state["slow_s"].get(name, 0))
    with changing(path) as state:
        globals()[name](state, words)


@contextmanager
def changing(path):
    """The state, written back unless the command fails; one command at a time."""
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state = json.load(file)
        yield state
        file.seek(0)
        file.truncate()
        json.dump(state, file)


if __name__ == "__main__":
    main()
