"""Settings of what makes stores: conversion of raw plates, and copies in another packing."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from phenomhpc.config.base import Fraction, JobModel, Model, PositiveInt


class CodecConfig(Model):
    """How inner chunks are compressed; shuffle `auto` is byte shuffle for uint16 and bitshuffle for uint8."""

    cname: Literal["lz4", "lz4hc", "zstd"] = "lz4"
    level: Annotated[int, Field(ge=0, le=9)] = 5
    shuffle: Literal["auto", "bitshuffle", "bitshuffle_pairs", "shuffle", "noshuffle"] = Field(
        "auto",
        description="bitshuffle_pairs: of two pixels of uint8 at a time, which blosc decodes 1.4 times as fast, for other readers",
    )
    compress: bool = Field(True, description="false stores raw chunks")


class ConvertConfig(JobModel):
    """Raw plates to one Zarr store."""

    kind: ClassVar[str] = "convert"
    plates: tuple[str, ...] = Field((), description="folders or globs of raw plates")
    store: str = Field("", description="folder of the store; made if absent")
    layout: Literal["auto", "phenix", "cellvoyager", "imagexpress", "gallery", "rxrx", "omezarr"] = "auto"
    metadata: str | None = Field(None, description="CSV joined by plate and well; default: the one the layout brings")
    metadata_columns: dict[str, str] = Field(
        {}, description="column of the store: column of that CSV, where the CSV does not use a known name"
    )
    plate_format: Literal[6, 12, 24, 48, 96, 384, 1536] | None = Field(
        None, description="wells of the plates, where the layout does not say"
    )
    z: str = Field(
        "all",
        description="all: each plane of a stack is a field; max, focus: one field of each stack; else one plane's name",
    )
    timepoint: Annotated[int, Field(ge=0)] | None = Field(None, description="the timepoint to convert; default: all")
    codec: CodecConfig = CodecConfig()
    chunk_px: PositiveInt = Field(128, description="edge of an inner chunk, pixels")
    shard_mb: PositiveInt = Field(
        1024, description="raw pixels of one shard, MiB; the number of fields per shard follows"
    )
    illumination: Literal["keep", "apply", "estimate"] = Field(
        "keep",
        description="uneven light: keep what the layout says beside the pixels; apply: divide by it; estimate: divide by what the "
        "plate's own fields say",
    )
    dtype: Literal["source", "uint8"] = Field(
        "source", description="uint8: 16-bit pixels through a look-up table for each plate and channel, which is stored"
    )
    uint8_percentiles: tuple[Annotated[float, Field(ge=0, lt=100)], Annotated[float, Field(gt=0, le=100)]] = Field(
        (0.1, 99.9), description="percentiles of a plate's channel that become 0 and 255, of a sample of its fields"
    )
    qc: bool = Field(True, description="measure focus, saturation, background, signal and nuclei of every field")
    verify: bool = Field(False, description="read every shard back from the disk before it counts as written")
    new: bool = Field(
        False, description="pass over plates that the store holds whole, without looking whether they changed"
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes of a run here; 0: one per core")
    max_set_aside: Fraction = Field(0.01, description="share of fields set aside above which the run fails")

    @field_validator("plates", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("uint8_percentiles")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"{value[0]:g} is not below {value[1]:g}")
        return value

    @field_validator("z", mode="before")
    @classmethod
    def _name_of_plane(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


class RechunkConfig(JobModel):
    """A store in another codec, chunk edge or shard size."""

    kind: ClassVar[str] = "rechunk"
    store: str = Field("", description="the store to copy")
    to: str = Field("", description="folder of the copy; made if absent")
    codec: CodecConfig = CodecConfig()
    chunk_px: PositiveInt | None = Field(None, description="edge of an inner chunk, pixels; default: the source's")
    shard_mb: PositiveInt | None = Field(
        None, description="raw pixels of one shard, MiB; default: as many fields as in the source"
    )
    verify: bool = Field(False, description="read every shard back from the disk before it counts as written")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes of a run here; 0: one per core")
