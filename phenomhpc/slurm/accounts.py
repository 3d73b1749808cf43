"""What accounting lets a person use: accounts and qualities of service.

It is asked only where Slurm enforces it; where it does not answer (slurmdbd down), nothing is known and nothing refused.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass

from phenomhpc.errors import UnreachableError
from phenomhpc.slurm.programs import ProgramFailedError, run_program

ASSOCIATION_FIELDS = "Account,QOS"
# Words of AccountingStorageEnforce by which Slurm insists on associations.
_INSIST = {"associations", "limits", "qos", "safe", "wckeys", "all"}


@dataclass(frozen=True, kw_only=True)
class Association:
    """A person's place in an account, and the qualities of service that come with it."""

    account: str
    qos: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """What was found: the person's associations, every quality of service, the account of a job that names none."""

    associations: tuple[Association, ...]
    qos: tuple[str, ...] = ()
    default_account: str | None = None

    @property
    def accounts(self) -> tuple[str, ...]:
        """The person's accounts."""
        return tuple(sorted({entry.account for entry in self.associations}))

    def qos_of(self, account: str | None) -> tuple[str, ...]:
        """What the person may use under an account (None: the default one); empty where nothing is said."""
        name = account or self.default_account
        return tuple(dict.fromkeys(qos for entry in self.associations if entry.account == name for qos in entry.qos))


def is_enforced(enforce: str) -> bool:
    """Does Slurm insist on associations?  enforce: AccountingStorageEnforce."""
    return bool(_INSIST & {word.strip().lower() for word in enforce.split(",")})


def parse_associations(text: str) -> tuple[Association, ...]:
    """Lines of `sacctmgr -n -P show associations format=ASSOCIATION_FIELDS`."""
    rows = (line.split("|") for line in text.splitlines() if line)
    return tuple(Association(account=account, qos=tuple(filter(None, qos.split(",")))) for account, qos in rows)


def query_accounting(cluster: str, enforce: str) -> Accounting | None:
    """Ask accounting; None where Slurm does not insist on it, or it does not answer."""
    if not is_enforced(enforce):
        return None
    user = pwd.getpwuid(os.getuid()).pw_name
    try:
        text = _ask("associations", f"cluster={cluster}", f"user={user}", fields=ASSOCIATION_FIELDS)
        return Accounting(
            associations=parse_associations(text),
            qos=tuple(_ask("qos", fields="Name").split()),
            default_account=_ask("user", f"name={user}", fields="DefaultAccount").strip() or None,
        )
    except (ProgramFailedError, UnreachableError):
        return None


def _ask(what: str, *words: str, fields: str) -> str:
    argv: Sequence[str] = ["sacctmgr", "-n", "-P", "show", what, *words, f"format={fields}"]
    return run_program(argv)
