"""Slurm's host lists, n[1-3,07-09]: expanded without asking scontrol.  Pure."""

from __future__ import annotations

import itertools
import re

MAX_HOSTS = 65_536  # Slurm's own limit of nodes
_PART = re.compile(r"([^\[\],]+)|\[([^\[\]]*)\]")
_RANGE = re.compile(r"^(\d+)(?:-(\d+))?$")
_HOST = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")


def expand(text: str) -> tuple[str, ...]:
    """Names of a host list, in order, each once.  Numbers keep the width of the first of their range.

    Raises ValueError, one line, for what is no host list.
    """
    names: list[str] = []
    for word in _words(text):
        pieces: list[list[str]] = []
        end = 0
        for found in _PART.finditer(word):
            if found.start() != end:
                raise ValueError(f"{word!r} is no host list, such as n[01-16]")
            end = found.end()
            pieces.append([found[1]] if found[1] is not None else _numbers(found[2], word))
        if end != len(word):
            raise ValueError(f"{word!r} is no host list, such as n[01-16]")
        names += ("".join(parts) for parts in itertools.islice(itertools.product(*pieces), MAX_HOSTS + 1))
        if len(names) > MAX_HOSTS:
            raise ValueError(f"{word!r} names more than {MAX_HOSTS} hosts")
    wrong = next((name for name in names if not _HOST.match(name)), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is no host's name")
    return tuple(dict.fromkeys(names))


def short(host: str) -> str:
    """A host's name without its domain."""
    return host.partition(".")[0]


def _words(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    words = [word.strip() for word in re.split(r",(?![^\[]*\])", text)]
    if not all(words):
        raise ValueError(f"{text!r} is no host list, such as n[01-16]")
    return words


def _numbers(text: str, word: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        match = _RANGE.match(part.strip())
        if match is None:
            raise ValueError(f"{word!r}: {part!r} is no number and no range such as 01-16")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise ValueError(f"{word!r}: {part!r} goes backwards")
        if int(last) - int(first) >= MAX_HOSTS:
            raise ValueError(f"{word!r} names more than {MAX_HOSTS} hosts")
        found += (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return found
