"""What a plate's pixels are divided by, and what is kept beside them.

In the array's attributes: `illumination` {applied, from, profiles}, for each channel what the layout said or what was
estimated from the plate, whether it was applied or not.  A function that lies in a file of its own is copied into the store
(`kept`, a name in the plate's folder of light): raw plates are archived, and crops divided as they are read need it.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from phenomhpc.errors import UsageError
from phenomhpc.plates import Plate
from phenomhpc.plates.illumination import NoProfile, Profile, estimate, open_profile, profile, reduced
from phenomhpc.runs import canonical_json, commit
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.lookup import sampled_fields, stack_pixels

ATTRIBUTE = "illumination"
KEEP, APPLY, ESTIMATE = "keep", "apply", "estimate"


def light_of(plate: Plate, how: str, size: tuple[int, int], known: dict[str, Any] | None) -> tuple[str | None, ...]:
    """For each channel of a plate what its pixels are to be divided by; () for `keep`.

    size: height and width of its fields.  known: what the store says of the plate already: an estimate once made stays.
    Raises UsageError when the layout says nothing to apply, or something that cannot be.
    """
    if how == KEEP:
        return ()
    if how == ESTIMATE:
        if known is not None and known.get("from") == ESTIMATE:
            return tuple(None if entry is None else _text(entry) for entry in known["profiles"])
        return _estimated(plate)
    if not any(plate.illumination):
        raise UsageError(
            f"plate {plate.root}: its layout says nothing of uneven light; --illumination estimate, or keep"
        )
    for channel, text in zip(plate.channels, plate.illumination, strict=True):
        try:
            profile(text, *size)
        except NoProfile as error:
            raise UsageError(
                f"plate {plate.root}: the flat field of {channel.name} {error}; --illumination keep"
            ) from error
    return tuple(None if text is None else _whole(text) for text in plate.illumination)


def keep_functions(paths: StorePaths, plate: Plate, light: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """The profiles of a plate as they go into its attributes, functions copied into the store as f32 and named `kept`.

    One that cannot be read stays what it was: a path.  Idempotent.
    """

    def kept(text: str | None) -> str | None:
        if text is None or json.loads(text)["kind"] != "npy":
            return text
        said = json.loads(text)
        try:
            data = Path(said["path"]).read_bytes()
            values = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return text
        if values.ndim != 2 or values.dtype.kind not in "fui":
            return text
        said["sha256"] = hashlib.sha256(data).hexdigest()
        said["kept"] = f"{said['sha256'][:16]}.npy"
        path = paths.light(plate.key) / said["kept"]
        if not path.is_file():
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(values, np.float32), allow_pickle=False)
            commit(path, buffer.getvalue())
        return _text(said)

    return tuple(kept(text) for text in light or plate.illumination)


def kept_profiles(
    paths: StorePaths, plate: str, size: tuple[int, int], num_channels: int
) -> tuple[Profile | None, ...]:
    """For each channel of a stored plate what its pixels are still to be divided by.  Raises NoProfile with the reason.

    size: height and width of its fields.
    """
    said = read_attribute(paths, plate)
    if said is None:
        raise NoProfile("is not known")
    if said["applied"]:
        return (None,) * num_channels
    texts = [None if entry is None else _in_store(paths, plate, entry) for entry in said["profiles"]]
    return tuple(open_profile(text, *size) for text in texts)


def light_digest(paths: StorePaths, plate: str) -> str:
    """Of what the store says of a plate's light: another digest, other pixels once they are divided by it."""
    return hashlib.sha256(canonical_json(read_attribute(paths, plate))).hexdigest()


def _in_store(paths: StorePaths, plate: str, said: dict[str, Any]) -> str:
    return _text({**said, "path": str(paths.light(plate) / said["kept"])} if "kept" in said else said)


def _whole(text: str) -> str:
    """A function that lies in a file of its own: with its content's digest, so that another content is another setting."""
    said = json.loads(text)
    if said["kind"] == "npy":
        said["sha256"] = hashlib.sha256(Path(said["path"]).read_bytes()).hexdigest()
    return _text(said)


def _text(content: Any) -> str:
    return canonical_json(content).decode()


def _estimated(plate: Plate) -> tuple[str | None, ...]:
    squares: list[list[np.ndarray[Any, np.dtype[np.float32]]]] = [[] for _ in plate.channels]
    for number in sampled_fields(plate):
        for found, stack in zip(squares, plate.fields[number].planes, strict=True):
            pixels = stack_pixels(stack, plate.projection)
            small = None if pixels is None else reduced(pixels)
            if small is not None and (not found or small.shape == found[0].shape):
                found.append(small)
    return tuple(_text(estimate(found)) if found else None for found in squares)


def attribute(how: str, profiles: tuple[str | None, ...], *, applied: bool) -> dict[str, Any]:
    """What is written into the array's attributes; {} where there is nothing to say."""
    if not any(profiles):
        return {}
    said = {"applied": applied, "from": ESTIMATE if how == ESTIMATE else "layout"}
    return {ATTRIBUTE: {**said, "profiles": [None if text is None else json.loads(text) for text in profiles]}}


def read_attribute(paths: StorePaths, plate: str) -> dict[str, Any] | None:
    """What a store says of a plate's light; None where it says nothing."""
    try:
        attributes = json.loads((paths.images(plate) / "zarr.json").read_bytes())["attributes"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    said: dict[str, Any] | None = attributes.get(ATTRIBUTE)
    return said
