"""A fingerprint as flat facts, name -> words, and what a difference in one of them is.  Pure.

Names: what runs compare (os, kernel, nvidia.driver, python.environment ...), and KIND:THING for everything else
(package:NAME, hold:NAME, candidate:NAME, file:PATH, sysctl:NAME, unit:NAME, module:NAME, limit:NAME, rdma:DEVICE).
`record` is what the roles wrote down at their end, and record:FACT what it says of a file or of the Python environment.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from phenomhpc.errors import UsageError
from phenomhpc.nodes.lock import MUST, Drift
from phenomhpc.nodes.probe import SCHEMA

Fingerprint = Mapping[str, Any]
Kind = Literal["managed", "unmanaged", "divergent"]
Level = Literal["must", "warn"]
ABSENT = "absent"
RECORD = "record"
# Of the values: told in detail by other facts of a whole fingerprint.
_SUMMARIES = ("packages", "site", "slurm.version", "gpfs.version", "nvidia.fabricmanager")
# Which sections of a fingerprint tell a fact, by its name or its first word.
SECTIONS: dict[str, tuple[str, ...]] = {
    "package": ("packages",),
    "hold": ("packages",),
    "candidate": ("candidates",),
    "file": ("files",),
    "sysctl": ("sysctls",),
    "unit": ("units",),
    "module": ("modules",),
    "limit": ("limits",),
    "rdma": ("rdma",),
    "record": ("manifest",),
    "gpfs": ("gpfs",),
    "gpfs.version": ("packages",),
    "nvidia": ("nvidia",),
    "nvidia.cuda": ("nvidia", "python"),
    "nvidia.nccl": ("python", "packages"),
    "nvidia.fabricmanager": ("packages",),
    "python": ("python",),
    "os": ("system",),
    "kernel": ("system",),
    "slurm": ("packages",),
    "packages": ("packages",),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that differs on one node.

    managed: from what the lock, or the record of what the roles wrote, says; unmanaged: it is there, and neither they nor a
    package explain it; divergent: from most nodes of its kind, where nothing says what is right.
    words: what follows from it, or what is behind it.
    """

    node: str
    kind: Kind
    fact: str
    found: str
    expected: str
    level: Level = "warn"
    words: str = ""

    def __str__(self) -> str:
        wanted = f" where {self.expected} is wanted" if self.kind == "managed" else f", the others {self.expected}"
        said = f"{self.fact} is {self.found}{'' if self.kind == 'unmanaged' or not self.expected else wanted}"
        return said + (f" ({self.words})" if self.words else "")


def check_fingerprint(value: Any, name: str) -> Fingerprint:
    """A fingerprint as read from JSON.  Raises UsageError for anything else."""
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or not isinstance(value.get("values"), dict):
        raise UsageError(
            f"{name}: is no fingerprint of schema {SCHEMA}; `phenomhpc node fingerprint --json` prints one"
        )
    return value


def facts_of(seen: Fingerprint) -> dict[str, str]:
    """Everything that a fingerprint says of its node, flat."""
    whole = "packages" in seen or "files" in seen
    facts = {name: str(value) for name, value in seen["values"].items() if not (whole and name in _SUMMARIES)}
    packages = seen.get("packages") or {}
    facts |= {f"package:{name}": version for name, version in (packages.get("versions") or {}).items()}
    facts |= {f"hold:{name}": "held" for name in packages.get("held") or ()}
    facts |= {f"candidate:{name}": version for name, version in (seen.get("candidates") or {}).items()}
    facts |= {f"file:{path}": file_words(each) for path, each in (seen.get("files") or {}).items() if each is not None}
    facts |= {f"sysctl:{name}": value for name, value in ((seen.get("sysctls") or {}).get("live") or {}).items()}
    facts |= {f"unit:{name}": each.get("enabled", "") for name, each in (seen.get("units") or {}).items()}
    facts |= {f"module:{name}": each.get("loaded", "") for name, each in (seen.get("modules") or {}).items()}
    facts |= {f"limit:{name}": value for name, value in (seen.get("limits") or {}).items()}
    facts |= {f"rdma:{name}": value for name, value in (seen.get("rdma") or {}).items() if name != "stack"}
    if (seen.get("gpfs") or {}).get("state"):
        facts["gpfs.state"] = seen["gpfs"]["state"]
    return facts | _recorded(seen)


def _recorded(seen: Fingerprint) -> dict[str, str]:
    """What the roles wrote down.  Of a node whose record was changed with what it is of, only this differs from other nodes."""
    record = seen.get("manifest") or {}
    if not record:
        return {}
    env = (record.get("python") or {}).get("environment")
    files = {path: file_words(each) for path, each in (record.get("files") or {}).items() if each is not None}
    return {
        RECORD: "present",
        **({f"{RECORD}:python.environment": str(env)} if env else {}),
        **{f"{RECORD}:file:{path}": words for path, words in files.items()},
    }


def file_words(each: Mapping[str, Any]) -> str:
    """mode owner:group content, in words."""
    if "mode" not in each:
        return f"not readable ({each.get('error', '?')})"
    content = str(each.get("sha256") or each.get("link") or each.get("size") or each.get("error") or "special")
    return f"{each['mode']} {each['owner']}:{each['group']} {content.removeprefix('keyed:')[:12]}"


def is_silent(fact: str, seen: Fingerprint) -> bool:
    """Could the fingerprint not tell this fact?  Of a record that is not there, nothing else is."""
    kind = fact.partition(":")[0]
    if kind == RECORD and fact != RECORD and not seen.get("manifest"):
        return True
    sections = SECTIONS.get(kind) or SECTIONS.get(kind.partition(".")[0], ())
    return not set(sections).isdisjoint(seen.get("silent") or {})


def level_of(fact: str, policy: Drift | None) -> Level | None:
    """What a difference in a fact, or in its record, means; None: nothing.  Without a lock, what MUST names is insisted on."""
    fact = fact.removeprefix(f"{RECORD}:")
    ignore, must = ((), MUST) if policy is None else (policy.ignore, policy.must)
    if _matches(fact, ignore):
        return None
    return "must" if _matches(fact, must) else "warn"


def _matches(fact: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(fact, pattern) for pattern in patterns)


def changed_distributions(found: Mapping[str, str], wanted: Mapping[str, str], limit: int = 3) -> str:
    """What differs between two installed sets ({name: "VERSION DIGEST"}), in words: `numpy 2.1.0 where 2.2.0 is wanted`."""
    said = []
    for name in sorted(set(found) | set(wanted)):
        mine, theirs = found.get(name, "").split(" ")[0], wanted.get(name, "").split(" ")[0]
        if found.get(name) == wanted.get(name):
            continue
        if mine == theirs:
            said.append(f"{name} {mine} has other files")
        else:
            said.append(f"{name} {mine or ABSENT}, not {theirs or ABSENT}")
    return _some(said, limit)


def is_shipped(fact: str, seen: Fingerprint) -> bool:
    """Is a value one of the Python environment's own, so that a difference in that environment tells it?"""
    names = (seen.get("python") or {}).get("distributions") or {}
    ours = fact in ("nvidia.nccl", "nvidia.cuda") and any(name.startswith(fact.replace(".", "-")) for name in names)
    return ours or fact == "python.torch"


def _some(words: Sequence[str], limit: int) -> str:
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
