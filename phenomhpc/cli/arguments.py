"""Reading the words of a command line before typer does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from phenomhpc.errors import UsageError

_OVERRIDE = re.compile(r"^[A-Za-z_][A-Za-z0-9_.]*=")
_CLOCK = re.compile(r"^(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?$")
_SPAN = re.compile(r"^(\d+(?:\.\d+)?)\s*(m|min|h|d)$")
_SPAN_MINUTES = {"m": 1, "min": 1, "h": 60, "d": 1440}
MINUTES_PER_DAY = 1440


def spread_lists(words: Sequence[str], options: Iterable[str]) -> list[str]:
    """`--plates A B key=value` as typer wants it: `--plates A --plates B key=value`.

    The words behind one of `options` belong to it up to the next option or override; a word with `=` that is a path on
    disk is a path.  So a shell's expansion of `--plates raw/*` arrives whole.
    """
    names = set(options)
    words, command = split_command(words)
    spread: list[str] = []
    collecting = ""
    for position, word in enumerate(words):
        if word == "--":
            return spread + list(words[position:])
        if word in names:
            collecting = word
            if position + 1 == len(words) or words[position + 1].startswith("--"):
                spread.append(word)  # typer says that a value is missing
        elif word.startswith("-"):
            collecting = ""
            spread.append(word)
        elif collecting and (not _OVERRIDE.match(word) or Path(word).exists()):
            spread += [collecting, word]
        else:
            collecting = ""
            spread.append(word)
    # One word at a time and with `=`, so that none of them is taken for an option of ours.
    return spread + [f"--command={word}" for word in command]


def split_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `run [flags] -- COMMAND ...` before `--` and behind it, untouched; of other verbs all, and none."""
    if "--" not in words or "run" not in (words[0], "".join(words[1:2]) if words[0] == "submit" else ""):
        return list(words), []
    at = list(words).index("--")
    return list(words[:at]), list(words[at + 1 :])


def parse_minutes(text: str) -> int:
    """A time limit in minutes, rounded up: Slurm's own forms (90, 1:30:00, 2-00:00:00), or 90m, 12h, 2d."""
    span = _SPAN.match(text.strip())
    if span:
        minutes = float(span[1]) * _SPAN_MINUTES[span[2]]
        return max(1, -int(-minutes // 1))
    clock = _CLOCK.match(text.strip())
    if not clock:
        raise UsageError(f"--time {text}: no time; write minutes (90), h:mm:ss (1:30:00), d-hh:mm:ss, or 90m, 12h, 2d")
    days, first, second, third = (int(part or 0) for part in clock.groups())
    if clock[1] is not None:  # d-hh[:mm[:ss]]
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    elif clock[4] is not None:  # hh:mm:ss
        seconds = (first * 60 + second) * 60 + third
    else:  # mm[:ss]
        seconds = first * 60 + second
    if not seconds:
        raise UsageError(f"--time {text}: no time at all; a limit is at least a minute")
    return -(-seconds // 60)


def parse_since(text: str, now: datetime) -> datetime:
    """`30d`, `12h`, `90m` before `now`, or a day (2026-11-01, that of `now`'s time zone)."""
    span = _SPAN.match(text.strip())
    if span:
        return now - timedelta(minutes=float(span[1]) * _SPAN_MINUTES[span[2]])
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=now.tzinfo)
    except ValueError as error:
        raise UsageError(f"--since {text}: no time; write 30d, 12h, 90m or a day as 2026-11-01") from error
