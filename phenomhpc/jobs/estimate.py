"""pretrain --estimate: what a training run will ask of its file system and cores, before anything is submitted.

Read are: zarr.json and some of the shard index of a few plates, and a few crops, whose cost on a core is measured here.  What
data.where and weights by column leave out is not looked at: a crop of it costs what another costs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from phenomhpc.config.training import PretrainConfig
from phenomhpc.crops import Sampler
from phenomhpc.crops.corpus import Corpus
from phenomhpc.crops.demand import CropDemand, Demand, Layout, crop_demand, demand, open_share, touch_shares
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.jobs.base import Table
from phenomhpc.store import Snapshot
from phenomhpc.store.cache import chunk_bytes
from phenomhpc.store.litreader import OWN
from phenomhpc.store.reader import MAX_OPEN_INDICES, MAX_OPEN_SHARDS
from phenomhpc.store.shardfiles import file_system_of
from phenomhpc.store.shardindex import ABSENT, open_shard_index
from phenomhpc.store.shards import Geometry, own_geometry, read_array_metadata

# Of a store with thousands of plates as many are looked at, evenly spread, and of each as many shards.
SAMPLED_PLATES, SAMPLED_SHARDS = 16, 8
TIMED_CROPS, TIMED_PASSES = 32, 3
GIGABYTE, KIBIBYTE = 1e9, 1024


@dataclass(frozen=True, kw_only=True)
class DataEstimate:
    """crop: of one crop; gpu, run: per second, of one GPU (or rank) and of all.

    core_crops_per_s: what a core reads and decodes, as given or measured here.  opens: in the long run, with the reader's
    pools of open files full.  cache_bytes: what a node's cache of every field takes; cache_hits: the expected share of crops
    from it with data.cache and data.cache_gb as set, None where either is not.
    """

    num_gpus: int
    gpu_crops_per_s: float
    core_crops_per_s: float
    is_measured: bool
    block_bytes: int
    file_system: str
    num_fields: int
    num_plates: int
    num_shards: int
    crop: CropDemand
    gpu: Demand
    run: Demand
    cache_bytes: int
    cache_hits: float | None


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    """A plate of a snapshot: how it is cut, and the mean length of the encoded chunks that crops touch."""

    geometry: Geometry
    chunk_bytes: float


def estimate_data(
    config: PretrainConfig,
    *,
    gpu_crops_per_s: float,
    core_crops_per_s: float | None = None,
    block_bytes: int | None = None,
) -> DataEstimate:
    """gpu_crops_per_s: what one GPU trains; core_crops_per_s: what one core reads, default measured; block_bytes: of the file
    system, default what it says itself.  Raises UsageError as a run would, and for a reader that is not ours; WorkError for a
    plate that cannot be read."""
    if config.data.reader != OWN:
        raise UsageError(
            f"--estimate: what data.reader={config.data.reader} asks of a file system is not known; leave it out"
        )
    corpus = Corpus.open(config.store, config.snapshot)
    edge, weights = config.model.crop_px, config.data.store_weights or (1.0,) * len(corpus.snapshots)
    if len(weights) != len(corpus.snapshots):
        raise UsageError(f"data.store_weights: {len(weights)} weight(s) for {len(corpus.snapshots)} store(s)")
    sampler = Sampler(corpus.tables, seed=config.seed, crop_px=edge)
    block = block_bytes or corpus.snapshots[0].store.paths.plates.stat().st_blksize
    layouts: list[Layout] = []
    num_shards = cache_bytes = shard_opens = index_opens = 0.0
    dealt = [snapshot.num_fields * weight for snapshot, weight in zip(corpus.snapshots, weights, strict=True)]
    for snapshot, weight in zip(corpus.snapshots, dealt, strict=True):
        sampled = list(_sampled(snapshot, edge))
        if not sampled:
            raise WorkError(f"store {snapshot.store.paths.root}: the plates looked at have no shard; run store seal")
        layouts += [_layout(snapshot, plate, weight / len(sampled)) for plate in sampled]
        plates, share = len(snapshot.plates), weight / sum(dealt)
        shards = plates * fmean(plate.geometry.num_shards for plate in sampled)
        num_shards += shards
        # Each store has a pool of its own in every reader.  The crops of a visit follow each other.
        shard_opens += share * open_share(shards, MAX_OPEN_SHARDS) / config.data.crops_per_visit
        index_opens += share * open_share(plates, MAX_OPEN_INDICES) / config.data.crops_per_visit
        cache_bytes += snapshot.num_fields * fmean(_field_bytes(snapshot, plate.geometry) for plate in sampled)
    crop = crop_demand(layouts, edge, block)
    rate = core_crops_per_s or _measured(config, corpus, sampler)
    gpus = config.cluster.nodes * (config.ranks_per_node or config.cluster.gpus_per_node or 1)
    gpu, run = (
        demand(crop, crops_per_s, shard_opens=shard_opens, index_opens=index_opens, core_crops_per_s=rate)
        for crops_per_s in (gpu_crops_per_s, gpu_crops_per_s * gpus)
    )
    hits = None
    if config.data.cache is not None and config.data.cache_gb is not None:
        hits = min(1.0, config.data.cache_gb * GIGABYTE / cache_bytes)
    return DataEstimate(
        num_gpus=gpus,
        gpu_crops_per_s=gpu_crops_per_s,
        core_crops_per_s=rate,
        is_measured=core_crops_per_s is None,
        block_bytes=block,
        file_system=file_system_of(corpus.snapshots[0].store.paths.plates),
        num_fields=int(corpus.starts[-1]),
        num_plates=sum(len(snapshot.plates) for snapshot in corpus.snapshots),
        num_shards=round(num_shards),
        crop=crop,
        gpu=gpu,
        run=run,
        cache_bytes=round(cache_bytes),
        cache_hits=hits,
    )


def _sampled(snapshot: Snapshot, crop_px: int) -> Iterator[_Sampled]:
    paths = snapshot.store.paths
    for number in np.unique(np.linspace(0, len(snapshot.plates) - 1, SAMPLED_PLATES).astype(int)):
        plate = snapshot.plates[number]
        try:
            geometry = own_geometry(read_array_metadata(paths, plate), snapshot.store.spec)
            index = open_shard_index(paths.shard_index(plate))
        except (OSError, ValueError) as error:
            raise WorkError(f"store {paths.root}: plate {plate}: {error}; see store verify") from error
        shards = np.unique(np.linspace(0, len(index) - 1, SAMPLED_SHARDS).astype(int))
        sizes = index[shards][..., 1].reshape(-1, geometry.chunks_per_field)
        sizes = sizes[sizes[:, 0] != ABSENT]  # a field is there as a whole or not at all
        if len(sizes):
            shares = np.outer(
                touch_shares(geometry.height, crop_px, geometry.chunk_px),
                touch_shares(geometry.width, crop_px, geometry.chunk_px),
            )
            yield _Sampled(geometry=geometry, chunk_bytes=float(np.average(sizes.mean(axis=0), weights=shares.ravel())))


def _layout(snapshot: Snapshot, plate: _Sampled, weight: float) -> Layout:
    geometry = plate.geometry
    return Layout(
        height=geometry.height,
        width=geometry.width,
        chunk_px=geometry.chunk_px,
        num_channels=geometry.num_channels,
        itemsize=snapshot.store.spec.itemsize,
        chunk_bytes=plate.chunk_bytes,
        weight=weight,
    )


def _field_bytes(snapshot: Snapshot, geometry: Geometry) -> int:
    """Of a field in a cache."""
    return geometry.chunks_per_field * chunk_bytes(geometry, snapshot.store.spec)


def _measured(config: PretrainConfig, corpus: Corpus, sampler: Sampler) -> float:
    """Crops per second of CPU time of the reader that training uses, in memory already: the best of a few passes."""
    visits = sampler.visits(np.arange(TIMED_CROPS))
    out = np.empty((len(corpus.channels), sampler.crop_px, sampler.crop_px), corpus.dtype)
    best = np.inf
    with corpus.reader(config.data.illumination) as reader:
        for _ in range(TIMED_PASSES):
            began = time.process_time()
            for field_no, y, x in zip(visits.field_no, visits.y[:, 0], visits.x[:, 0], strict=True):
                reader.read(int(field_no), int(y), int(x), out)
            best = min(best, time.process_time() - began)
    return TIMED_CROPS / best


def table_of(found: DataEstimate) -> Table:
    """For a person."""
    crop, gpu, run = found.crop, found.gpu, found.run

    def row(what: str, of_crop: float | None, name: str) -> tuple[str, ...]:
        return what, "" if of_crop is None else _plain(of_crop), *(_plain(getattr(each, name)) for each in (gpu, run))

    block = f"{found.block_bytes / KIBIBYTE:,.0f} KiB{f', {found.file_system}' if found.file_system else ''}"
    return Table(
        title="Data, expected",
        columns=("what", "per crop", "a GPU, per second", f"{found.num_gpus} GPU(s), per second"),
        rows=(
            row("crops", 1, "crops"),
            row("MB of pixels", crop.pixel_bytes / 1e6, "pixels_mb"),
            row("MB from the file system, compressed", crop.read_bytes / 1e6, "read_mb"),
            row("reads (one for each row of chunks)", crop.reads, "reads"),
            row(f"blocks of the file system ({block})", crop.blocks, "blocks"),
            row("shards opened", gpu.shard_opens / gpu.crops, "shard_opens"),
            row("indices of plates opened", gpu.index_opens / gpu.crops, "index_opens"),
            row("CPU cores to read and decode", None, "cores"),
        ),
    )


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def words_of(found: DataEstimate) -> list[str]:
    """What the table rests on, one sentence a line."""
    crop, how = found.crop, "measured here" if found.is_measured else "as given"
    cache = f"a cache of every field takes {found.cache_bytes / GIGABYTE:,.3g} GB on each node"
    if found.cache_hits is not None:
        cache += f"; with data.cache_gb as set {found.cache_hits:.0%} of the crops come from it, once it is filled"
    return [
        f"{found.num_fields:,} fields in about {found.num_shards:,} shards of {found.num_plates:,} plate(s), "
        f"{crop.ratio:.2f} times smaller than their pixels",
        f"a crop touches {crop.chunks:.2f} chunks: read amplification {crop.amplification:.2f}",
        f"assumed: {found.gpu_crops_per_s:,g} crops/s a GPU, {found.core_crops_per_s:,.0f} crops/s a core ({how})",
        cache,
    ]
