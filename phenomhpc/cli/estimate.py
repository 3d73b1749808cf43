"""phenomhpc pretrain --estimate, phenomhpc submit pretrain --estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phenomhpc.cli.output import print_json, print_table

if TYPE_CHECKING:
    from phenomhpc.config import AnyConfig

KIBIBYTE = 1024
_NUMBERS = ("mfu", "gpu_crops_per_s", "core_crops_per_s", "block_kib")
_HOW = ("gpu", *_NUMBERS, "json")


def wants_estimate(own: dict[str, Any]) -> bool:
    """Is an estimate asked for?  Raises UsageError for a flag that says how without one."""
    from phenomhpc.errors import UsageError

    given = [name for name in _HOW if own.get(name)]
    if given and not own["estimate"]:
        raise UsageError(f"--{given[0].replace('_', '-')}: only with --estimate")
    return bool(own.get("estimate"))


def print_estimate(config: AnyConfig, own: dict[str, Any]) -> None:
    """What a training run would cost and ask for.  own: the verb's own values.  Raises UsageError as the run would."""
    from dataclasses import asdict

    from phenomhpc.config import PretrainConfig
    from phenomhpc.crops.corpus import Corpus
    from phenomhpc.errors import UsageError
    from phenomhpc.jobs import estimate, train_estimate

    for name in _NUMBERS:
        if own[name] is not None and own[name] <= 0:
            raise UsageError(f"--{name.replace('_', '-')} {own[name]:g}: must be more than 0")
    if own["mfu"] is not None and own["mfu"] > 1:
        raise UsageError(f"--mfu {own['mfu']:g}: a share of the peak, at most 1")
    if own["mfu"] is not None and own["gpu_crops_per_s"] is not None:
        raise UsageError("--mfu, --gpu-crops-per-s: one follows from the other; give one of them")
    assert isinstance(config, PretrainConfig)
    training = train_estimate.of_corpus(
        config,
        Corpus.open(config.store, config.snapshot),
        gpu=own["gpu"],
        mfu=own["mfu"],
        crops_per_s=own["gpu_crops_per_s"],
    )
    found = estimate.estimate_data(
        config,
        gpu_crops_per_s=training.crops_per_s,
        core_crops_per_s=own["core_crops_per_s"],
        block_bytes=own["block_kib"] and own["block_kib"] * KIBIBYTE,
    )
    if own["json"]:
        print_json({"train": training.to_json(), "data": asdict(found)})
        return
    print_table(train_estimate.table_of(training))
    for line in train_estimate.words_of(training):
        print(line)
    print_table(estimate.table_of(found))
    for line in estimate.words_of(found):
        print(line)
