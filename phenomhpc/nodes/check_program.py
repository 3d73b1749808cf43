"""The node check as one file: probe.py, check.py and the lock, for a root who imports nothing of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.nodes import check, probe
from phenomhpc.nodes.lock import Lock
from phenomhpc.nodes.lock_file import lock_digest, site_json

# -I and -S: no variable, no folder of a user's and no site-packages has a say in what is imported.
_FIRST = "#!/usr/bin/python3 -IS\n"
_IMPORTS = re.compile(r"^from phenomhpc\.\S+ import (\([^)]*\)|.*)$\n", re.MULTILINE)
_FUTURE = "from __future__ import annotations\n"


def check_program(lock: Lock) -> str:
    """The file's text.  Raises UsageError where the lock has no time for its checks within Slurm's."""
    if lock.checks.each_s + 2 * check.SCONTROL_S > lock.checks.total_s:
        raise UsageError(
            f"checks.each_s={lock.checks.each_s:g}: with two questions to Slurm of {check.SCONTROL_S:g} s each it is more than "
            f"checks.total_s={lock.checks.total_s:g}; lower it"
        )
    looking = Path(probe.__file__).read_text().partition("\ndef main(")[0]
    looking = looking.partition(_FUTURE)[2].replace(
        'GIVEN_SITE = ""\n', f"GIVEN_SITE = {json.dumps(site_json(lock))!r}\n", 1
    )
    head, _, acting = Path(check.__file__).read_text().partition(_FUTURE)
    origin = f"# Generated for {lock.name} by `phenomhpc node check --write` (lock {lock_digest(lock)[:16]}); not to be edited.\n"
    return _FIRST + origin + head + _FUTURE + looking + _IMPORTS.sub("", acting)
