"""What a node has against what the lock, and the record of what the roles wrote, say.  Pure.

One change is one finding: what a stray file brings about (a sysctl that it wins, a candidate that it changes) is told in
that file's words, and what follows from a package's version is not told again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from phenomhpc.nodes.facts import (
    ABSENT,
    Finding,
    Fingerprint,
    Kind,
    changed_distributions,
    file_words,
    is_shipped,
    is_silent,
    level_of,
)
from phenomhpc.nodes.lock import File, Lock, OnHosts
from phenomhpc.nodes.lock_rules import says
from phenomhpc.nodes.probe import MANIFEST

# The lock's names of limits (limits.conf(5)) and the kernel's in /proc/PID/limits.
LIMITS = {"memlock": "locked_memory"}
_PREFERENCES = "/etc/apt/"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is known of one node against the lock.  covered: facts of which the lock says what is right; unreadable: paths."""

    findings: tuple[Finding, ...]
    covered: frozenset[str]
    unreadable: tuple[str, ...]


def against_lock(node: str, seen: Fingerprint, lock: Lock) -> Told:
    """How a node differs from the lock; `unreadable` are files of which it could not tell all."""
    made = _Against(node=node, seen=seen, lock=lock, classes=tuple(seen.get("classes") or ()))
    rules = (made.values, made.packages, made.sysctls, made.limits, made.units, made.modules, made.files, made.strays)
    expected = [each for rule in rules for each in rule()]
    covered = frozenset(each.fact for each in expected)
    wrong = [each for each in expected if each.found != each.expected and not is_silent(each.fact, seen)]
    named = {file.path for file in lock.managed.files}
    unreadable = [
        path for path, each in (seen.get("files") or {}).items() if path in named and each and "error" in each
    ]
    findings = _without_effects(wrong, seen)
    levelled = [replace(each, level=level) for each in findings if (level := level_of(each.fact, lock.drift))]
    return Told(findings=tuple(levelled), covered=covered, unreadable=tuple(unreadable))


@dataclass(frozen=True, kw_only=True)
class _Against:
    """Each rule yields a finding for every fact of which it knows what is right; those that are right have found == expected."""

    node: str
    seen: Fingerprint
    lock: Lock
    classes: tuple[str, ...]

    def _say(self, fact: str, found: str | None, expected: str, words: str = "", kind: Kind = "managed") -> Finding:
        return Finding(node=self.node, kind=kind, fact=fact, found=found or ABSENT, expected=expected, words=words)

    def _is_here(self, thing: OnHosts) -> bool:
        return bool(set(thing.hosts) & set(self.classes))

    @property
    def _manifest(self) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self.seen.get("manifest") or {}
        return value

    def values(self) -> Iterator[Finding]:
        """Operating system, kernel, driver and its kin, the Python environment."""
        values = self.seen["values"]
        for fact, wanted in expected_values(self.lock, self.classes).items():
            found = values.get(fact)
            right = found is not None and matches(fact, found, wanted)
            yield self._say(fact, wanted if right else found, wanted)
        yield from self._environment()

    def _environment(self) -> Iterator[Finding]:
        recorded = self._manifest.get("python") or {}
        env = self.seen.get("python") or {}
        own = self.lock.python.environment if self.lock.python else ""
        wanted: str = own or (recorded.get("environment") if recorded.get("path") == env.get("path") else "") or ""
        if wanted:
            words = changed_distributions(env.get("distributions") or {}, recorded.get("distributions") or {})
            found = self.seen["values"].get("python.environment")
            yield self._say("python.environment", found, wanted, words if recorded.get("distributions") else "")

    def packages(self) -> Iterator[Finding]:
        packages = self.seen.get("packages")
        if packages is None:
            return
        versions, held = packages.get("versions") or {}, packages.get("held") or ()
        candidates = self.seen.get("candidates") or {}
        for package in self.lock.packages:
            if not self._is_here(package):
                continue
            name = package.name
            found = versions.get(name)
            yield self._say(f"package:{name}", found, package.version)
            if package.hold and found is not None:
                yield self._say(f"hold:{name}", "held" if name in held else "not held", "held")
            if name in candidates:
                yield self._say(f"candidate:{name}", candidates[name], package.version)
        known = self._manifest.get("packages")
        if known is None:
            return
        rightful = {*known, *(package.name for package in self.lock.packages)}
        for name in packages.get("manual") or ():
            if name not in rightful:
                yield self._say(f"package:{name}", versions.get(name), ABSENT, kind="unmanaged")

    def sysctls(self) -> Iterator[Finding]:
        sysctls = self.seen.get("sysctls") or {}
        live, files = sysctls.get("live") or {}, sysctls.get("files") or {}
        for name, wanted in self.lock.sysctls.items() if sysctls else ():
            value, said = " ".join(wanted.split()), files.get(name) or {}
            if live.get(name) == value and said and said["value"] != value:
                words = f"now {value}, but {said['path']} says so for the next boot"
                yield self._say(f"sysctl:{name}", said["value"], value, words)
            else:
                yield self._say(f"sysctl:{name}", live.get(name), value)

    def limits(self) -> Iterator[Finding]:
        limits = self.seen.get("limits") or {}
        for limit in self.lock.limits:
            name = LIMITS.get(limit.item)
            if name is not None and limits and limit.value == "unlimited" and limit.domain in ("*", "root"):
                yield self._say(f"limit:{name}", limits.get(name), "unlimited unlimited", "inside slurmd")

    def units(self) -> Iterator[Finding]:
        units = self.seen.get("units") or {}
        for unit in self.lock.units if units else ():
            if not self._is_here(unit):
                continue
            said = units.get(unit.name) or {}
            found, wanted = [], []
            if unit.enabled is not None:
                state = said.get("enabled") or ABSENT
                right = _is_enabled(state) if unit.enabled else state in ("disabled", "masked", ABSENT)
                wanted.append("enabled" if unit.enabled else "disabled")
                found.append(wanted[-1] if right else state)
            if unit.active is not None:
                state = said.get("active") or ABSENT
                right = state == "active" if unit.active else state in ("inactive", "failed", ABSENT)
                wanted.append("active" if unit.active else "inactive")
                found.append(wanted[-1] if right else state)
            yield self._say(f"unit:{unit.name}", ", ".join(found), ", ".join(wanted))

    def modules(self) -> Iterator[Finding]:
        for name, each in (self.seen.get("modules") or {}).items():
            if each.get("file") and each.get("loaded"):
                words = "the installed module is not the loaded one; reboot"
                yield self._say(f"module:{name}", each["loaded"], each["file"], words)

    def files(self) -> Iterator[Finding]:
        """What the roles wrote: there, with the lock's mode and owner, and the content of the record.

        A content of which there is no record is left to the comparison with the other nodes.
        """
        files, recorded = self.seen.get("files"), self._manifest.get("files") or {}
        for file in self.lock.managed.files if files is not None else ():
            if not self._is_here(file):
                continue
            each, before = (files or {}).get(file.path), recorded.get(file.path)
            found = file_words(each) if each else ABSENT
            wanted = "present" if each is None else _wanted_words(file, each, before)
            if found != wanted or before:
                yield self._say(f"file:{file.path}", found, wanted)

    def strays(self) -> Iterator[Finding]:
        """What is in a managed folder, and explained by nothing."""
        rightful = {file.path for file in self.lock.managed.files} | {MANIFEST}
        for path, each in (self.seen.get("files") or {}).items():
            if path in rightful or each is None:
                continue
            fact, found = f"file:{path}", file_words(each)
            if "package" not in each:
                yield self._say(fact, found, ABSENT, kind="unmanaged")
            elif each.get("changed"):
                yield self._say(
                    fact, found, "as packaged", f"changed; {each['package']} brought another", kind="unmanaged"
                )


def _is_enabled(state: str) -> bool:
    return state in ("enabled", "enabled-runtime", "static", "alias", "indirect", "generated")


def _wanted_words(file: File, each: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> str:
    """A file as it should be, in file_words' words; what nobody says, or cannot be read now or then, is as it is."""
    if "mode" not in each:
        return file_words(each)
    before = recorded or {}
    own = {"mode": file.mode, "owner": file.owner, "group": file.group}
    wanted = {**each, **{name: value or before.get(name) or each[name] for name, value in own.items()}}
    if "sha256" in before and "sha256" in each:
        wanted["sha256"] = before["sha256"]
    return file_words(wanted)


def expected_values(lock: Lock, classes: tuple[str, ...]) -> dict[str, str]:
    """What the lock says of the values that runs compare, on a host of these classes; left out where it says nothing.

    Versions that a pinned package says anyway are left to that package.
    """
    found: dict[str, str | None] = {}
    if lock.os is not None and lock.os.distribution is not None:
        found["os"] = f"{lock.os.distribution} {lock.os.release or ''}".strip()
    if lock.kernel is not None:
        found["kernel"] = lock.kernel.release
    if lock.nvidia is not None and "compute" in classes:
        card = lock.nvidia
        found |= {
            "nvidia.driver": card.driver,
            "nvidia.model": card.model,
            "nvidia.cuda": card.cuda,
            "nvidia.nccl": card.nccl,
        }
    if lock.rdma is not None and "compute" in classes:
        found["rdma.version"] = lock.rdma.version
    if lock.python is not None:
        found |= {"python.version": lock.python.version, "python.torch": lock.python.torch}
    return {fact: value for fact, value in found.items() if value}


def matches(fact: str, found: str, wanted: str) -> bool:
    """Is a value the wanted one?  Of versions the lock may give the beginning: 12.8 is also said by 12.8.1."""
    if fact in ("nvidia.model", "python.environment"):
        return found == wanted
    return says(found, wanted)


def _without_effects(findings: list[Finding], seen: Fingerprint) -> list[Finding]:
    """Fold what stray files bring about into their words, and what a changed environment brings with it into it."""
    strays = {each.fact.removeprefix("file:"): each for each in findings if each.fact.startswith("file:")}
    says_so = (seen.get("sysctls") or {}).get("files") or {}
    words: dict[str, list[str]] = {path: [] for path in strays}
    environment = any(each.fact == "python.environment" for each in findings)
    kept: list[Finding] = []
    for each in findings:
        kind, _, name = each.fact.partition(":")
        cause = _cause(kind, name, strays, says_so)
        if cause is not None:
            words[cause].append(f"{name} is {each.found}, not {each.expected}")
        elif not (environment and is_shipped(each.fact, seen)):
            kept.append(each)
    said = {path: "; ".join(filter(None, (strays[path].words, *sorted(words[path])))) for path in strays}
    return [replace(each, words=said.get(each.fact.removeprefix("file:"), each.words)) for each in kept]


def _cause(kind: str, name: str, strays: Mapping[str, Finding], says_so: Mapping[str, Any]) -> str | None:
    if kind == "sysctl":
        path = (says_so.get(name) or {}).get("path")
        return path if path in strays else None
    if kind == "candidate":
        return next((path for path in strays if path.startswith(_PREFERENCES)), None)
    return None
