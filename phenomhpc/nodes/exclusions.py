"""The exclusion ledger: nodes that a person's runs, or everybody's, are kept away from, with the reason and an end.

One file per user, and one of the administrators, which binds everybody; a person's entries bind only that person's runs.

    {"schema": 1, "entries": [{"cluster", "node", "reason", "evidence", "since", "until", "by"}, ...]}

Times are ISO 8601 in UTC; `until` null: until somebody clears it.  Files are meant to be read, and may be edited, by hand:
an entry that cannot be understood is named and left where it is.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from phenomhpc.commit import commit, make_folder
from phenomhpc.errors import UsageError, WorkError

SCHEMA = 1
LEDGER = "excluded.json"
SITE_FILE = "/etc/phenomhpc/site.json"
# Another process holds the lock only while it rewrites a small file; a dead NFS lock must not hold up a run for ever.
LOCK_LIMIT_S = 10
_NODE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """One node of one cluster.  evidence: run, attempt, job, words, figures: whatever was seen, as JSON values.

    binding: an administrators' entry, which is never set aside to make room for a job.
    """

    cluster: str
    node: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    since: str
    until: str | None
    by: str
    binding: bool = False


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Both files' entries; problems: one line for each file or entry that could not be understood."""

    entries: tuple[Exclusion, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a submission excludes; ignored: entries left out, since the partition could not hold the job without them."""

    excluded: tuple[str, ...]
    ignored: tuple[Exclusion, ...]

    @property
    def words(self) -> str:
        """One sentence for a person, empty where there is nothing to say."""
        said = [f"excluded: {', '.join(self.excluded)}"] if self.excluded else []
        if self.ignored:
            names = ", ".join(f"{entry.node} ({entry.reason})" for entry in self.ignored)
            said.append(f"not excluded, or the partition could not hold the job: {names}")
        return "; ".join(said)


# -- pure -------------------------------------------------------------------------------------------------------------


def active(entries: Iterable[Exclusion], cluster: str, now: datetime) -> tuple[Exclusion, ...]:
    """Entries of a cluster that have not expired, by node; of a node's several the binding one, else the newest."""
    best: dict[str, Exclusion] = {}
    for entry in sorted(entries, key=lambda entry: (entry.binding, entry.since)):
        if entry.cluster == cluster and (entry.until is None or datetime.fromisoformat(entry.until) > now):
            best[entry.node] = entry
    return tuple(best[node] for node in sorted(best))


def merge(entries: Iterable[Exclusion], new: Exclusion) -> tuple[Exclusion, ...]:
    """With one more entry, which takes the place of an older one of the same node and cluster; the later end stays."""
    kept, until = [], new.until
    for entry in entries:
        if (entry.cluster, entry.node) != (new.cluster, new.node):
            kept.append(entry)
        elif entry.until is None or (until is not None and entry.until > until):
            until = entry.until
    return (*kept, replace(new, until=until))


def without(entries: Iterable[Exclusion], cluster: str, nodes: Collection[str] | None = None) -> tuple[Exclusion, ...]:
    """Without a cluster's entries of these nodes; of all its nodes by default."""
    return tuple(
        entry for entry in entries if entry.cluster != cluster or (nodes is not None and entry.node not in nodes)
    )


def unexpired(entries: Iterable[Exclusion], now: datetime) -> tuple[Exclusion, ...]:
    """Without those whose end has passed, of any cluster."""
    return tuple(entry for entry in entries if entry.until is None or datetime.fromisoformat(entry.until) > now)


def choose_exclusions(
    entries: Iterable[Exclusion], partition_nodes: Collection[str], needed: int, asked: Sequence[str] = ()
) -> Choice:
    """Which of the active entries a job of `needed` nodes excludes.

    asked: nodes that the person excludes for this job; they and administrators' entries always count.  Of the others the
    newest come first, and those are left out without which too few of the partition's nodes would remain.
    """
    own = set(partition_nodes)
    excluded = list(dict.fromkeys(asked))
    ignored = []
    for entry in sorted(entries, key=lambda entry: (entry.binding, entry.since), reverse=True):
        if entry.node not in own or entry.node in excluded:
            continue
        if entry.binding or len(own - {*excluded, entry.node}) >= needed:
            excluded.append(entry.node)
        else:
            ignored.append(entry)
    return Choice(excluded=tuple(sorted(excluded)), ignored=tuple(ignored))


def parse(text: str, name: str, *, binding: bool = False) -> tuple[tuple[Exclusion, ...], list[Any], tuple[str, ...]]:
    """A ledger's text: its entries, the raw values that are none, and a line for each of these.

    Raises ValueError with one line when the text as a whole is no ledger.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: no JSON ({error}); mend or remove it") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or not isinstance(value.get("entries"), list):
        raise ValueError(
            f'{name}: no exclusion ledger: wants {{"schema": {SCHEMA}, "entries": [...]}}; mend or remove it'
        )
    good, bad, problems = [], [], []
    for position, raw in enumerate(value["entries"]):
        try:
            good.append(_entry(raw, binding))
        except (TypeError, ValueError) as error:
            bad.append(raw)
            problems.append(f"{name}: entry {position + 1} is ignored: {error}")
    return tuple(good), bad, tuple(problems)


def _entry(raw: Any, binding: bool) -> Exclusion:
    if not isinstance(raw, dict):
        raise ValueError("it is no object")
    for name in ("cluster", "node"):
        if not isinstance(raw.get(name), str) or not _NODE.match(raw[name]):
            raise ValueError(f"{name}={raw.get(name)!r} is no name")
    until, evidence = raw.get("until"), raw.get("evidence", {})
    if until is not None and (not isinstance(until, str) or datetime.fromisoformat(until).tzinfo is None):
        raise ValueError(f"until={until!r} is no time with its zone, such as 2030-01-31T12:00:00+00:00")
    return Exclusion(
        cluster=raw["cluster"],
        node=raw["node"],
        reason=str(raw.get("reason", "")),
        evidence=evidence if isinstance(evidence, dict) else {"words": evidence},
        since=str(raw.get("since", "")),
        until=until if until is None else datetime.fromisoformat(until).astimezone(UTC).isoformat(timespec="seconds"),
        by=str(raw.get("by", "")),
        binding=binding,
    )


def render_ledger(entries: Iterable[Exclusion], unread: Sequence[Any] = ()) -> str:
    """The file's text; `unread` are raw entries that are kept as they are."""
    rows = [{name: value for name, value in asdict(entry).items() if name != "binding"} for entry in entries]
    return json.dumps({"schema": SCHEMA, "entries": [*rows, *unread]}, indent=2, default=str) + "\n"


# -- files ------------------------------------------------------------------------------------------------------------


def user_ledger(environment: Mapping[str, str] = os.environ) -> Path:
    """PHENOMHPC_STATE/excluded.json; that folder is by default $XDG_STATE_HOME/phenomhpc, ~/.local/state/phenomhpc."""
    if environment.get("PHENOMHPC_STATE"):
        return Path(environment["PHENOMHPC_STATE"]).expanduser() / LEDGER
    state = environment.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "phenomhpc" / LEDGER


def site_ledger(environment: Mapping[str, str] = os.environ) -> Path:
    """The administrators' file, beside the site's settings: /etc/phenomhpc/excluded.json."""
    return Path(environment.get("PHENOMHPC_SITE") or SITE_FILE).with_name(LEDGER)


def read_ledger(environment: Mapping[str, str] = os.environ) -> Ledger:
    """Both files; never raises for what is in them, or for one that cannot be read."""
    entries: list[Exclusion] = []
    problems: list[str] = []
    for path, binding in ((site_ledger(environment), True), (user_ledger(environment), False)):
        try:
            found, _, words = parse(path.read_text(), str(path), binding=binding)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{path}: not readable ({error.strerror})")
        except ValueError as error:
            problems.append(str(error))
        else:
            entries += found
            problems += words
    return Ledger(entries=tuple(entries), problems=tuple(problems))


def excluded_nodes(
    cluster: str,
    partition_nodes: Collection[str],
    needed: int,
    asked: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Choice:
    """What a submission to `cluster` excludes now; problems of the files and ignored entries are said in one line each."""
    ledger = read_ledger()
    choice = choose_exclusions(active(ledger.entries, cluster, datetime.now(UTC)), partition_nodes, needed, asked)
    for line in (*ledger.problems, choice.words if choice.ignored else ""):
        if line:
            say(line)
    return choice


def record(
    *,
    cluster: str,
    node: str,
    reason: str,
    evidence: Mapping[str, Any],
    hours: float | None,
    by: str = "phenomhpc",
    path: Path | None = None,
    say: Callable[[str], None] = print,
) -> Exclusion:
    """Exclude a node for so many hours (None: until it is cleared); durable on return.

    path: the file, by default the user's.  A file that is no ledger is moved aside, with a line said.  Raises UsageError
    for a name that cannot be a node's, WorkError in one line when the file cannot be written.
    """
    if not _NODE.match(node):
        raise UsageError(f"node {node!r}: no node's name; name nodes one by one, such as n1 n2")
    began = datetime.now(UTC)
    until = None if hours is None else (began + timedelta(hours=hours)).isoformat(timespec="seconds")
    new = Exclusion(
        cluster=cluster,
        node=node,
        reason=reason,
        evidence=evidence,
        since=began.isoformat(timespec="seconds"),
        until=until,
        by=by,
    )
    _rewrite(path or user_ledger(), lambda entries: merge(unexpired(entries, began), new), say)
    return new


def clear(
    *, cluster: str, nodes: Collection[str] | None, path: Path | None = None, say: Callable[[str], None] = print
) -> tuple[str, ...]:
    """Take nodes of a cluster (all by default) out of a ledger; returns the names that were in it.

    Raises WorkError in one line when the file cannot be written.
    """
    gone: set[str] = set()

    def change(entries: tuple[Exclusion, ...]) -> tuple[Exclusion, ...]:
        kept = without(entries, cluster, nodes)
        gone.update(entry.node for entry in entries if entry not in kept)
        return kept

    target = path or user_ledger()
    if target.exists():
        _rewrite(target, change, say)
    return tuple(sorted(gone))


def person() -> str:
    """Who asks, for the ledger's `by`: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _rewrite(
    path: Path, change: Callable[[tuple[Exclusion, ...]], tuple[Exclusion, ...]], say: Callable[[str], None]
) -> None:
    try:
        make_folder(path.parent)
        with _locked(path.with_name(f"{path.name}.lock")):
            entries, unread = _read_to_change(path, say)
            commit(path, render_ledger(change(entries), unread))
    except OSError as error:
        raise WorkError(
            f"{path}: not written ({error.strerror or error}); is the folder yours, and is there space?"
        ) from error


def _read_to_change(path: Path, say: Callable[[str], None]) -> tuple[tuple[Exclusion, ...], list[Any]]:
    try:
        entries, unread, _ = parse(path.read_text(), str(path))
    except FileNotFoundError:
        return (), []
    except ValueError as error:
        aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
        path.rename(aside)
        say(f"{error} (moved aside: {aside.name})")
        return (), []
    return entries, unread


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_LIMIT_S
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WorkError(
                        f"{path}: held by another process for {LOCK_LIMIT_S} s; nothing was changed"
                    ) from None
                time.sleep(0.05)
        yield
