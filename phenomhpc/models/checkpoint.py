"""Reading checkpoints: which ones count, what they hold, an encoder out of one.

CHECKPOINTS/
  step-00001000/
    __0_0.distcp ... .metadata   torch.distributed.checkpoint: model.*, optimiser.*, ema.* (optim.ema)
    meta.json                    CheckpointMeta
    COMMITTED                    the files above with their sizes and crc32c, and the sha256 of that list; written last

A folder without COMMITTED, or whose files differ from its list, is torn: it is passed over, and said so.  DCP's index is
a pickle, so a folder that belongs to another user is refused before anything in it is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.models.export import is_export, load_export, read_export_meta
from phenomhpc.models.kinds import complete_fields, identifying_fields
from phenomhpc.models.weights import AUTO, choose_weights, has_average, is_average

if TYPE_CHECKING:  # what a checkpoint says of itself is read without torch, whose import takes seconds
    import torch
    from torch import Tensor
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    from phenomhpc.models.mae import MaskedAutoencoder

COMMITTED = "COMMITTED"
META = "meta.json"
SCHEMA = 1
_BLOCK = 2**24  # bytes read at once for a checksum
_STEP = re.compile(r"^step-(\d{8,})$")


@dataclass(frozen=True, kw_only=True)
class CheckpointMeta:
    """meta.json: everything that resuming and embedding must agree with."""

    schema: int
    step: int  # steps done; the next one has this number
    next_index: int  # first sample index of the next step
    global_batch: int
    world_size: int
    seed: int
    model: dict[str, Any]  # ModelConfig's fields; those that came later than the checkpoint are filled in
    optimiser: str
    channels: tuple[str, ...]
    dtype: str  # of the pixels trained on
    scale: tuple[float, ...]  # grey levels that become 1, per channel
    illumination: str  # apply: crops were divided by the light their store keeps
    snapshot: str  # digest
    config: str  # digest of the run's configuration
    skip_ledger: tuple[tuple[int, int], ...]  # sample indices [first, last) left out
    random_scheme: str
    torch: str
    weights: str  # weights_digest of the model's parameters
    init_from: dict[str, str] | None = None  # the checkpoint whose weights the run began with: its folder, their digest
    ema: float | None = None  # decay of the moving average of the weights; None: there is none
    ema_weights: str | None = None  # its weights_digest; None beside a decay: the weights themselves are the average

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def step_folder(checkpoints: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return checkpoints / f"step-{step:08d}"


def read_meta(folder: Path) -> CheckpointMeta:
    """meta.json of a step folder or of an export.  Raises UsageError where it is missing, malformed or of another schema."""
    try:
        value = read_export_meta(folder) if is_export(folder) else json.loads((folder / META).read_bytes())
        expected = {field.name for field in fields(CheckpointMeta)}
        later = {field.name for field in fields(CheckpointMeta) if field.default is not MISSING}
        if value.get("schema") != SCHEMA:
            raise UsageError(f"checkpoint {folder}: schema {value.get('schema')}; this version reads {SCHEMA}")
        if differing := (set(value) ^ expected) - (later - set(value)):
            raise UsageError(f"checkpoint {folder}: {META} differs in {sorted(differing)}")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"checkpoint {folder}: no readable {META} ({error}); give a folder step-NNNNNNNN") from error
    value["model"] = complete_fields(value["model"])
    value["skip_ledger"] = tuple((first, last) for first, last in value["skip_ledger"])
    return CheckpointMeta(**{**value, "channels": tuple(value["channels"]), "scale": tuple(value["scale"])})


def list_files(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of what COMMITTED vouches for, sorted by name."""
    return sorted((entry.name, entry.stat().st_size) for entry in folder.iterdir() if entry.name != COMMITTED)


def checksum(path: Path) -> int:
    """crc32c of a file's bytes."""
    import google_crc32c

    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = google_crc32c.extend(crc, block)
    return crc


def make_mark(folder: Path, known: Mapping[str, int]) -> str:
    """The content of COMMITTED for the files that are there; `known`: checksums of some of them."""
    files = [
        [name, size, known[name] if name in known else checksum(folder / name)] for name, size in list_files(folder)
    ]
    return json.dumps({"files": files, "sha256": _mark_digest(files)})


def _mark_digest(files: list[list[Any]]) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _read_mark(folder: Path) -> list[tuple[str, int, int | None]] | str:
    """Name, size and crc32c (None in those of older versions) of the files that COMMITTED lists; or what is wrong with it."""
    try:
        mark = json.loads((folder / COMMITTED).read_bytes())
        listed = [(name, size, *(crc or [None])) for name, size, *crc in mark["files"]]
        digest = mark["sha256"]
    except FileNotFoundError:
        return f"not committed ({COMMITTED} is missing)"
    except (ValueError, KeyError, TypeError):
        return f"{COMMITTED} is malformed"
    if _mark_digest(mark["files"]) != digest:
        return f"{COMMITTED} does not match its own digest"
    return listed


def damage(folder: Path) -> str | None:
    """Why a step folder must not be used; None when it is committed and its files are those it was committed with.

    Of the files other than meta.json the lengths are compared, not the bytes: see `damaged_bytes`.
    """
    listed = _read_mark(folder)
    if isinstance(listed, str):
        return listed
    present = dict(list_files(folder))
    for name, size, crc in listed:
        if name not in present:
            return f"{name} is missing"
        if present[name] != size:
            return f"{name} has {present[name]} bytes, not {size}"
        if name == META and crc not in (None, checksum(folder / name)):
            return f"{name} has other bytes than were written"
    return None


def damaged_bytes(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """Read every `parts`-th file of a committed step folder, from `part` on: which has other bytes than were written, if any.

    DCP does not find that out: torch reads a tensor with a flipped bit as it is.
    """
    listed = _read_mark(folder)
    if isinstance(listed, str):
        return listed
    for name, _, crc in listed[part::parts]:
        if crc not in (None, checksum(folder / name)):
            return f"{name} has other bytes than were written"
    return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def step_folders(checkpoints: Path) -> dict[int, Path]:
    """Every step folder that is there, usable or torn, by step, ascending."""
    entries = checkpoints.iterdir() if checkpoints.is_dir() else ()
    found = {int(match[1]): entry for entry in entries if (match := _STEP.match(entry.name))}
    return dict(sorted(found.items()))


def committed(checkpoints: Path, say: Callable[[str], None] = _say) -> Iterator[Path]:
    """The usable step folders, newest first; each torn one is passed over with a line that says why."""
    for folder in reversed(step_folders(checkpoints).values()):
        reason = damage(folder)
        if reason is None:
            yield folder
        else:
            say(f"checkpoint {folder}: passed over, {reason}")


def newest_committed(checkpoints: Path, say: Callable[[str], None] = _say) -> Path | None:
    """The newest usable step folder, or None."""
    return next(committed(checkpoints, say), None)


def require_owned(folder: Path) -> None:
    """Refuse a checkpoint that another user could have written: DCP's index is a pickle."""
    for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        owner = path.stat().st_uid
        if owner != os.geteuid():
            raise UsageError(
                f"checkpoint {path}: belongs to user {owner}, not to you ({os.geteuid()}); its index is a pickle and "
                "could run code: copy it as yourself if you trust its owner"
            )


def require_same(folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any], what: str, *, way_out: str) -> None:
    """UsageError naming the first field in which the checkpoint differs from what is asked, and both values."""
    for name in sorted({*stored, *asked}):
        there, here = stored.get(name, "absent"), asked.get(name, "absent")
        if there != here:
            raise UsageError(f"checkpoint {folder}: {what}{name} is {there} there and {here} here; {way_out}")


def model_key(name: str) -> str:
    """Name in the checkpoint of a parameter of the model."""
    return f"model.{name}"


def average_key(name: str) -> str:
    """Name in the checkpoint of the moving average of a parameter."""
    return f"ema.{name}"


def _require_shapes(folder: Path, reader: FileSystemReader, state: Mapping[str, Tensor]) -> None:
    stored = reader.read_metadata().state_dict_metadata
    for name, tensor in state.items():
        size = getattr(stored.get(name), "size", None)
        if size != tensor.shape:
            there = "absent" if size is None else tuple(size)
            raise UsageError(
                f"checkpoint {folder}: tensor {name} is {there} there and {tuple(tensor.shape)} in the architecture of "
                f"its {META}; it is no checkpoint of this model"
            )


def load_tensors(folder: Path, state: dict[str, Tensor]) -> None:
    """Fill the CPU tensors of `state` in place from a step folder, without any collective.

    Raises UsageError for a folder of another user or of other tensors, WorkError when its files cannot be read.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    require_owned(folder)
    reader = FileSystemReader(folder)
    try:
        _require_shapes(folder, reader, state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(dict(state), storage_reader=reader, no_dist=True)
    except UsageError:
        raise
    # Unpickling and unzipping damaged files raise what they please; DCP's own exception is no Exception.
    except (Exception, CheckpointException) as error:
        first = str(error).strip().splitlines() or [""]
        raise WorkError(f"checkpoint {folder}: unreadable ({type(error).__name__}: {first[0]})") from error


def load_weights(path: Path, state: Mapping[str, Tensor], *, average: bool = False) -> None:
    """Fill CPU tensors by parameter name from a step folder, or its average, or an export; raises as `load_tensors`."""
    if is_export(path):
        load_export(path, state)
    else:
        key = average_key if average else model_key
        load_tensors(path, {key(name): tensor for name, tensor in state.items()})


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of CPU tensors, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_encoder(
    folder: Path, device: torch.device | str = "cpu", weights: str = AUTO
) -> tuple[MaskedAutoencoder, CheckpointMeta]:
    """The model of a step folder, or of an export, in eval mode, and the meta of the weights that were chosen
    (`choose_weights`), which are checked against their digest.

    Raises UsageError for a folder that is no checkpoint of this model, or lacks these weights, WorkError for a damaged one.
    """
    from phenomhpc.models.mae import outline_mae

    held = read_meta(folder)
    meta = choose_weights(folder, held, weights)
    reason = None if is_export(folder) else damage(folder)
    if reason is not None:
        raise WorkError(f"checkpoint {folder}: {reason}; choose another step")
    if not is_export(folder) or ":" in meta.model["kind"]:  # an index that is a pickle; a class that is imported
        require_owned(folder)
    try:
        model = outline_mae(len(meta.channels), seed=meta.seed, **meta.model)
    except TypeError as error:
        raise UsageError(f"checkpoint {folder}: {META} describes another kind of model ({error})") from error
    model = model.to_empty(device="cpu")
    state = dict(model.named_parameters())
    average = has_average(held) and is_average(meta)
    load_weights(folder, {name: parameter.data for name, parameter in state.items()}, average=average)
    if weights_digest(state) != meta.weights:
        raise WorkError(f"checkpoint {folder}: the weights are not those that were saved; choose another step")
    model.lay_tables()
    return model.to(device).eval(), meta


def checkpoint_digest(folder: Path, weights: str = AUTO) -> str:
    """sha256 over what decides an embedding: the chosen weights, architecture, channels and their scale."""
    meta = choose_weights(folder, read_meta(folder), weights)
    decides = {
        "weights": meta.weights,
        "model": identifying_fields(meta.model),
        "channels": meta.channels,
        "scale": meta.scale,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
