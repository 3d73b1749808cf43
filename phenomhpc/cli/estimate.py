"""phenomhpc pretrain --estimate, phenomhpc submit pretrain --estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phenomhpc.cli.output import print_json, print_table

if TYPE_CHECKING:
    from phenomhpc.config import AnyConfig

GPU_CROPS_PER_S = 500.0
KIBIBYTE = 1024
_NUMBERS = ("gpu_crops_per_s", "core_crops_per_s", "block_kib")
_HOW = (*_NUMBERS, "json")


def wants_estimate(own: dict[str, Any]) -> bool:
    """Is an estimate asked for?  Raises UsageError for a flag that says how without one."""
    from phenomhpc.errors import UsageError

    given = [name for name in _HOW if own.get(name)]
    if given and not own["estimate"]:
        raise UsageError(f"--{given[0].replace('_', '-')}: only with --estimate")
    return bool(own.get("estimate"))


def print_estimate(config: AnyConfig, own: dict[str, Any]) -> None:
    """What a training run would ask for.  own: the verb's own values.  Raises UsageError as the run would."""
    from dataclasses import asdict

    from phenomhpc.config import PretrainConfig
    from phenomhpc.errors import UsageError
    from phenomhpc.jobs.estimate import estimate_data, table_of, words_of

    for name in _NUMBERS:
        if own[name] is not None and own[name] <= 0:
            raise UsageError(f"--{name.replace('_', '-')} {own[name]:g}: must be more than 0")
    assert isinstance(config, PretrainConfig)
    found = estimate_data(
        config,
        gpu_crops_per_s=own["gpu_crops_per_s"] or GPU_CROPS_PER_S,
        core_crops_per_s=own["core_crops_per_s"],
        block_bytes=own["block_kib"] and own["block_kib"] * KIBIBYTE,
    )
    if own["json"]:
        print_json({"data": asdict(found)})
        return
    print_table(table_of(found))
    for line in words_of(found):
        print(line)
