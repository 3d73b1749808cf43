"""Taking fingerprints: of this machine, and of others over a command such as ssh.  probe.py looks, in its own process."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from phenomhpc.errors import UsageError
from phenomhpc.nodes import probe
from phenomhpc.nodes.collect import ask
from phenomhpc.nodes.facts import Fingerprint, check_fingerprint
from phenomhpc.nodes.lock_file import site_path

# The probe gives up by itself; this is for a machine on which nothing moves.
GRACE_S = 5.0
DEFAULT_REACH = "ssh -o BatchMode=yes -o ConnectTimeout=10 {host}"
_AT_ONCE = 32


def take_fingerprint(
    *, short: bool = False, env: str = sys.prefix, site: Path | None = None, limit_s: float = probe.LIMIT_S
) -> tuple[Fingerprint | None, str]:
    """This machine's fingerprint, and of the Python environment `env`; (None, why) where there is none."""
    argv = [sys.executable, "-I", "-S", probe.__file__, "--env", env, "--site", str(site or site_path())]
    out, words = ask([*argv, "--limit", f"{limit_s:g}", *(["--short"] if short else [])], limit_s + GRACE_S)
    return _read(out, words, "the probe")


def gather(
    hosts: Sequence[str], *, reach: str, site: Mapping[str, Any] | None, limit_s: float
) -> tuple[dict[str, Fingerprint], dict[str, str]]:
    """({host: fingerprint}, {host: why there is none}).  Each host runs the probe as it is here: nothing is installed or written.

    reach: a command to which a program's words are added, with {host} in it; its stdin must reach the program.
    site: the lock's JSON, sent along, so that all are looked at by the same; None: each host has its own.
    Raises UsageError for a command without {host}.
    """
    if "{host}" not in reach:
        raise UsageError(f"--reach={reach}: says nowhere which host; {DEFAULT_REACH!r} is the default")
    text = Path(probe.__file__).read_text()
    if site is not None:
        text = text.replace('GIVEN_SITE = ""\n', f"GIVEN_SITE = {json.dumps(site)!r}\n", 1)

    def one(host: str) -> tuple[Fingerprint | None, str]:
        words = [word.replace("{host}", host) for word in shlex.split(reach)]
        return _ask_with(text, [*words, "python3", "-I", "-S", "-", "--limit", f"{limit_s:g}"], limit_s + 2 * GRACE_S)

    with ThreadPoolExecutor(max_workers=min(_AT_ONCE, max(1, len(hosts)))) as pool:
        answers = dict(zip(hosts, pool.map(one, hosts), strict=True))
    found = {host: seen for host, (seen, _) in answers.items() if seen is not None}
    return found, {host: why for host, (seen, why) in answers.items() if seen is None}


def _ask_with(text: str, argv: Sequence[str], limit_s: float) -> tuple[Fingerprint | None, str]:
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=limit_s)
    except OSError as error:
        return None, f"{argv[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return None, f"no answer within {limit_s:g} s"
    words = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1] if done.returncode else None
    return _read(done.stdout, words, argv[0])


def _read(out: str, words: str | None, program: str) -> tuple[Fingerprint | None, str]:
    if words is not None:
        return None, words
    try:
        return check_fingerprint(json.loads(out), program), ""
    except (ValueError, UsageError):
        return None, f"{program}: unexpected answer: {out.strip()[:80]!r}"


def read_fingerprints(paths: Sequence[Path]) -> dict[str, Fingerprint]:
    """{host: fingerprint} of files that `node fingerprint --json` printed.  Raises UsageError for another file, or a host twice."""
    found: dict[str, Fingerprint] = {}
    for path in paths:
        try:
            value = json.loads(path.read_text())
        except OSError as error:
            raise UsageError(f"{path}: not readable ({error.strerror})") from None
        except ValueError as error:
            raise UsageError(f"{path}: is no JSON ({error})") from None
        host = str(check_fingerprint(value, str(path)).get("host"))
        if host in found:
            raise UsageError(f"{path}: host {host} is in another of these files, too; give each host once")
        found[host] = value
    return found
