"""An embeddings folder: its file names, and what it is bound to.

    EMB/embeddings.json               the binding: which encoder, which pixels, taken how
    EMB/PLATE.parquet                 one row per well (DESIGN 4)
    EMB/blocks/NN/...                 the same of further blocks of the encoder, a whole folder of embeddings each
    EMB/crops/...                     the same with one row per crop, where they were asked for
    EMB/baselines/NAME/...            the same, from something that was not trained: `untrained`, `intensity`
    EMB/complete.json                 the proof that every well is there (embed/proof.py)
    EMB/.progress/PLATE.json          completion record of a plate; it alone says that a plate is done

A folder holds embeddings of one kind only.  Whoever comes with another checkpoint, other weights of it, other blocks, crops,
another pooling, dtype or backend is refused with one line; so is another snapshot, unless only what is new is asked for: then
the plates that are in both snapshots with the same pixels and metadata stay, and the rest is added.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.runs import canonical_json, commit

SCHEMA = 1
BASELINES, BLOCKS, CROPS = "baselines", "blocks", "crops"
COMPILED = "torch compiled"  # the name of a backend
# What a binding tells and does not bind: where checkpoint and store lay, and what every plate's own digest has of settings.
TOLD = ("checkpoint", "store", "batch", "seed")


@dataclass(frozen=True)
class EmbeddingsPaths:
    """The one owner of file names in an embeddings folder."""

    root: Path

    @property
    def binding(self) -> Path:
        return self.root / "embeddings.json"

    def table(self, plate: str) -> Path:
        return self.root / f"{plate}.parquet"

    def record(self, plate: str) -> Path:
        return self.root / ".progress" / f"{plate}.json"

    def baseline(self, name: str) -> EmbeddingsPaths:
        return EmbeddingsPaths(self.root / BASELINES / name)

    def baselines(self) -> list[str]:
        """Names of the baselines that are bound here."""
        return sorted(path.parent.name for path in self.root.glob(f"{BASELINES}/*/embeddings.json"))

    def block(self, number: int) -> EmbeddingsPaths:
        """The folder of a further block."""
        return EmbeddingsPaths(self.root / BLOCKS / f"{number:02d}")

    def blocks(self) -> dict[int, EmbeddingsPaths]:
        """Every block that is bound here, by its number, ascending: the folder's own among them; none of an unbound folder."""
        own = read_binding(self)
        if own is None:
            return {}
        further = {number: self.block(number) for number in own.blocks}
        return dict(sorted({own.block: self, **further}.items()))

    @property
    def crops(self) -> EmbeddingsPaths:
        return EmbeddingsPaths(self.root / CROPS)

    @property
    def proof(self) -> Path:
        return self.root / "complete.json"

    def tables(self) -> list[Path]:
        """The plates' tables that lie here, by name."""
        return sorted(self.root.glob("*.parquet"))


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What the embeddings of a folder have in common; embeddings.json holds exactly this.

    source: `checkpoint`, or the baseline's name (`untrained`, `intensity`)
    checkpoint: the step folder as it was given, for whoever wants to go back to the run; its digest decides
    weights: of the checkpoint: `model`, or `ema`, their moving average
    store, snapshot_digest: the pixels; block: 1-based; channels: in the encoder's order
    blocks: further ones that lie below the folder; level: crop where crops do
    placing: which crops of a field, `tiled` or `random`; crops_per_field, crops_seed: of random ones
    batch, seed: the settings, for whoever adds plates later
    """

    source: str
    checkpoint: str
    weights: str = "model"  # what folders of older versions hold
    checkpoint_digest: str
    store: str
    snapshot_digest: str
    block: int
    pooling: str
    dtype: str
    backend: str
    channels: tuple[str, ...]
    crop_px: int
    num_features: int
    blocks: tuple[int, ...] = ()
    level: str = "well"
    placing: str = "tiled"
    crops_per_field: int | None = None
    crops_seed: int | None = None
    batch: int = 64
    seed: int = 0
    schema: int = SCHEMA


def read_binding(paths: EmbeddingsPaths) -> Binding | None:
    """The binding of a folder, or None where it is not bound yet.  Raises UsageError for one this version cannot read."""
    try:
        raw = json.loads(paths.binding.read_bytes())
        known = {field.name for field in fields(Binding)}
        return Binding(
            **{name: value for name, value in raw.items() if name in known}
            | {"channels": tuple(raw["channels"]), "blocks": tuple(raw.get("blocks", ()))}
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{paths.binding}: is no binding of embeddings ({error}); choose another --out") from error


def check(paths: EmbeddingsPaths, binding: Binding, *, new: bool = False) -> None:
    """Raise UsageError naming what differs when a folder is bound to something else; writes nothing."""
    present = read_binding(paths)
    if present is not None:
        _refuse_difference(paths, present, binding, new=new)


def bind(paths: EmbeddingsPaths, binding: Binding, *, new: bool = False) -> None:
    """Bind a folder, or make sure that it is bound to the same.

    new: another snapshot is welcome (only what is absent will be embedded); the folder is bound to it from then on.
    Raises UsageError naming what differs.  Several tasks may bind at once: they write the same bytes, or all but one see the
    difference when they read back.
    """
    present = read_binding(paths)
    if present is not None:
        _refuse_difference(paths, present, binding, new=new)
    if present is None or present.snapshot_digest != binding.snapshot_digest:
        commit(paths.binding, canonical_json(asdict(binding)) + b"\n")
        written = read_binding(paths)
        if written is None:
            raise WorkError(f"{paths.binding}: vanished while it was written; run again")
        _refuse_difference(paths, written, binding, new=new)


def _refuse_difference(paths: EmbeddingsPaths, present: Binding, binding: Binding, *, new: bool) -> None:
    comparable = replace(present, **{name: getattr(binding, name) for name in TOLD})
    if new:
        comparable = replace(comparable, snapshot_digest=binding.snapshot_digest)
    for field in fields(Binding):
        theirs, ours = getattr(comparable, field.name), getattr(binding, field.name)
        if theirs != ours:
            way_out = (
                "use --new to add what is absent, or another --out"
                if field.name == "snapshot_digest"
                else "choose another --out"
            )
            raise UsageError(
                f"{paths.root}: holds embeddings of {field.name}={_short(theirs)}, asked for {_short(ours)}; {way_out}"
            )


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
