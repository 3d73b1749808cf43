"""phenomhpc node fingerprint | compare | lock: what a node is, which nodes are not like the others, what a node should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phenomhpc.cli.output import print_json

if TYPE_CHECKING:
    from phenomhpc.nodes.drift import Report

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Site = Annotated[
    Path | None,
    typer.Option(
        "--site", help="The lock, or its site.json; default: /etc/phenomhpc/site.json where it is.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verbs to `phenomhpc node`."""
    app.command()(fingerprint)
    app.command()(compare)
    app.command()(lock)


def fingerprint(
    short: Annotated[bool, typer.Option("--short", help="Only what runs compare.")] = False,
    env: Annotated[
        str | None, typer.Option(help="Folder of the Python environment; default: this one's.", show_default=False)
    ] = None,
    site: Site = None,
    as_json: AsJson = False,
) -> None:
    """What this node is: packages, managed files, sysctls, units, modules, limits, Python environment.  Only reads."""
    import sys

    from phenomhpc.errors import WorkError
    from phenomhpc.jobs.base import Table
    from phenomhpc.nodes.facts import facts_of
    from phenomhpc.nodes.fingerprint import take_fingerprint

    seen, words = take_fingerprint(short=short, env=env or sys.prefix, site=_as_json(site))
    if seen is None:
        raise WorkError(f"no fingerprint of this node: {words}")
    if as_json:
        print_json(seen)
        return
    from phenomhpc.cli.output import print_table

    facts = facts_of(seen)
    rows = tuple((name, value) for name, value in facts.items() if short or ":" not in name)
    print_table(Table(title=f"{seen['host']}, {seen['digest'][:16]}", columns=("what", "found"), rows=rows))
    if not short:
        kinds: dict[str, int] = {}
        for name in facts:
            kind, colon, _ = name.partition(":")
            kinds[kind] = kinds.get(kind, 0) + 1 if colon else 0
        print(", ".join(f"{count} {kind}(s)" for kind, count in kinds.items() if count) + "; --json has all of them")
    for section, why in seen["silent"].items():
        print(f"could not tell: {section}: {why}")


def compare(
    files: Annotated[
        list[Path], typer.Argument(help="What `node fingerprint --json` printed on each node.", show_default=False)
    ],
    site: Site = None,
    as_json: AsJson = False,
) -> None:
    """Which nodes are not like the others; exit code 0: none, 1: some, 4: could not tell."""
    from phenomhpc.nodes.drift import find_drift
    from phenomhpc.nodes.fingerprint import read_fingerprints
    from phenomhpc.nodes.lock_file import read_lock

    show(find_drift(read_fingerprints(files), read_lock(site) if site is not None else None), as_json)


def lock(
    check: Annotated[
        Path | None,
        typer.Option("--check", help="The lock to check; default: site.json of this host.", show_default=False),
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", help="Write it there as site.json.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a site lock and what its parts demand of each other, before any host is touched."""
    import json

    from phenomhpc.commit import commit
    from phenomhpc.nodes.lock_file import lock_digest, read_lock, site_json, site_path

    path = check or site_path()
    found = read_lock(path)
    if write is not None:
        commit(write, (json.dumps(site_json(found), indent=1, sort_keys=True) + "\n").encode())
    if as_json:
        print_json(site_json(found))
    else:
        counts = f"{len(found.classes())} hosts, {len(found.packages)} packages pinned"
        print(f"{path}: {found.name}, {counts}; digest {lock_digest(found)[:16]}")


def show(report: Report, as_json: bool) -> None:
    """Print a drift report, and leave with its exit code."""
    from dataclasses import asdict

    from phenomhpc.cli.output import print_table
    from phenomhpc.jobs.base import Table

    if as_json:
        findings = [{**asdict(each), "class": each.kind} for each in report.findings]
        for each in findings:
            del each["kind"]
        print_json({"verdict": report.verdict, "nodes": report.nodes, "findings": findings, "silent": report.silent})
    else:
        columns = ("node", "class", "level", "what", "found", "wanted", "")
        rows: tuple[tuple[Any, ...], ...] = tuple(
            (each.node, each.kind, each.level, each.fact, each.found, each.expected, each.words)
            for each in report.findings
        )
        if rows:
            print_table(Table(title="Drift", columns=columns, rows=rows))
        for node, why in report.silent.items():
            print(f"{node}: could not tell: {'; '.join(why)}")
        print(_summary(report))
    raise typer.Exit(report.exit_code)


def _summary(report: Report) -> str:
    count = len(report.nodes)
    if report.verdict == "clean":
        return f"{count} node(s), no drift"
    if report.verdict == "unknown":
        return f"{count} node(s) told all, no drift among them; the others could not tell"
    drifted = sorted({each.node for each in report.findings})
    return f"{len(drifted)} of {count} node(s) drifted: {', '.join(drifted)}"


def _as_json(site: Path | None) -> Path | None:
    """A lock as the site.json that the probe reads; a site.json as it is."""
    import json
    import tempfile

    from phenomhpc.nodes.lock_file import read_lock, site_json

    if site is None or site.suffix == ".json":
        return site
    folder = Path(tempfile.mkdtemp(prefix="phenomhpc-site-"))
    (folder / "site.json").write_text(json.dumps(site_json(read_lock(site))))
    return folder / "site.json"
