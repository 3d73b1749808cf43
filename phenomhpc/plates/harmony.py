"""Reading an index of Harmony as a stream, and the flat-field profiles in it.

Two dialects.  HarmonyV4 to V6 (root Version 1): each Image has all facts of its channel.  HarmonyV7 (Version 2): Images have
their place only, the facts of a channel stand once in a Maps/Map/Entry, flat fields there too or in a file of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phenomhpc.errors import UsageError

# Deeper or longer profiles are nothing that an instrument writes.
_MAX_DEPTH, _MAX_PROFILE = 12, 200_000
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?|[-+]?\.\d+([eE][-+]?\d+)?")
_NEXT_KEY = re.compile(r"\s*[A-Za-z]\w*\s*:\s")

Texts = dict[str, str]


def local(tag: str) -> str:
    """A tag without its namespace."""
    return tag.rsplit("}", 1)[-1]


def walk_index(
    path: Path, plate: Callable[[Texts], None], image: Callable[[Texts], None], entry: Callable[[str, Texts], None]
) -> None:
    """Call back for each Plate, Image and channel Entry of an index, with the texts of its children.

    No entity is expanded, nothing external fetched, and what was handed over is dropped: memory does not grow with the
    index.  Lengths come in metres there; a Unit attribute of another unit is converted.  Raises UsageError, one line.
    """
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, iterparse

    above: list[Any] = []
    try:
        with path.open("rb") as file:
            for event, element in iterparse(file, events=("start", "end"), forbid_dtd=True):
                if event == "start":
                    above.append(element)
                    continue
                above.pop()
                tag = local(element.tag)
                if tag == "Plate":
                    plate(_texts(element))
                elif tag == "Image" and len(element):
                    image(_texts(element))
                elif tag == "Entry" and "ChannelID" in element.attrib:
                    entry(element.attrib["ChannelID"].strip(), _texts(element))
                if tag in ("Image", "Well", "Entry") and above:
                    above[-1].remove(element)
    except (ParseError, DefusedXmlException, LookupError, ValueError) as error:
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"plate {path.parent}: {path.name} is malformed or hostile: {what}") from error
    except OSError as error:
        raise UsageError(f"plate {path.parent}: {path.name} cannot be read ({error.strerror})") from error


_METRES = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "nm": 1e-9}
_LENGTHS = frozenset({"PositionX", "PositionY", "ImageResolutionX", "ImageResolutionY"})


def _texts(element: Any) -> Texts:
    found: Texts = {}
    for child in element:
        name, text = local(child.tag), (child.text or "").strip()
        scale = _METRES.get(child.attrib.get("Unit", "m"), 1.0) if name in _LENGTHS else 1.0
        if scale != 1.0 and _NUMBER.fullmatch(text):
            text = repr(float(text) * scale)
        found[name] = text
    return found


def profile_json(text: str | None) -> str | None:
    """A channel's flat-field profile as canonical JSON {"kind": "phenix", "profile": {...}}; None where it is absent.

    The index writes it as `{Background: {Character: NonFlat, Profile: {Coefficients: [[1.2], [0.1, -0.2]], ...}}}`: keys and
    words without quotes.  What is no finite number (INF, NaN) stays a word.  What cannot be parsed is kept as
    {"kind": "phenix", "text": ...}: it is said, and not used.
    """
    if not text:
        return None
    try:
        if len(text) > _MAX_PROFILE:
            raise ValueError("too long")
        value, end = _value(text, 0, 0)
        if not isinstance(value, dict) or text[end:].strip():
            raise ValueError("no profile")
        content: dict[str, Any] = {"kind": "phenix", "profile": value}
    except (ValueError, IndexError):
        content = {"kind": "phenix", "text": text[:_MAX_PROFILE]}
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    """The value that begins at `at`, and where it ends.  Raises ValueError, IndexError."""
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    at = _skip(text, at)
    if text[at] == "{":
        return _mapping(text, at + 1, depth)
    if text[at] == "[":
        return _sequence(text, at + 1, depth)
    end = at
    while text[end] not in ",}]" or (
        text[end] == "," and not _NEXT_KEY.match(text, end + 1) and not _in_list(text, at)
    ):
        end += 1
    word = text[at:end].strip()
    return (float(word) if _NUMBER.fullmatch(word) else word), end


def _in_list(text: str, at: int) -> bool:
    """Does the word at `at` stand in a list, where a comma ends it?"""
    before = text[:at].rstrip()
    return before.endswith(("[", ","))


def _mapping(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = _skip(text, at)
    while text[at] != "}":
        colon = text.index(":", at)
        name = text[at:colon].strip()
        found[name], at = _value(text, colon + 1, depth + 1)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found, at + 1


def _sequence(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    at = _skip(text, at)
    while text[at] != "]":
        value, at = _value(text, at, depth + 1)
        found.append(value)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found, at + 1


def _skip(text: str, at: int) -> int:
    while text[at].isspace():
        at += 1
    return at
