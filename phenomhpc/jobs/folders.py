"""The folders that a job's settings name: looked at before it is submitted, on its node, and bound into a container."""

from __future__ import annotations

import re
from pathlib import Path

from phenomhpc.config import AnyConfig, ConvertConfig, EmbedConfig, EvaluateConfig, PretrainConfig, RechunkConfig
from phenomhpc.config.models import RunConfig
from phenomhpc.runs import RunPaths


def folders_of(config: AnyConfig, paths: RunPaths) -> dict[str, Path]:
    """Folders that a run reads or writes as a whole, by the setting that names them."""
    found = {"runs": paths.root.parent}
    if isinstance(config, ConvertConfig):
        found["store"] = Path(config.store)
    elif isinstance(config, RechunkConfig):
        found |= {"store": Path(config.store), "to": Path(config.to)}
    elif isinstance(config, PretrainConfig):
        found |= {"store": Path(config.store[0])} if config.store else {}
    elif isinstance(config, EmbedConfig):
        found |= {"store": Path(config.store), **({"out": Path(config.out)} if config.out else {})}
    return {name: path.absolute() for name, path in found.items()}


def bound_folders(config: AnyConfig, paths: RunPaths) -> tuple[Path, ...]:
    """Everything that a task of the run must see: the folders above and its inputs; of a glob, what lies before it."""
    found = list(folders_of(config, paths).values())
    if isinstance(config, ConvertConfig):
        found += [_fixed(pattern) for pattern in config.plates]
        found += [Path(config.metadata).parent] if config.metadata else []
    elif isinstance(config, PretrainConfig):
        found += [Path(store) for store in config.store]
    elif isinstance(config, EmbedConfig):
        found.append(Path(config.checkpoint))
        found += [Path(config.onnx).parent] if config.onnx else []
    elif isinstance(config, EvaluateConfig):
        found += [Path(config.embeddings), Path(config.annotations)]
        found += [Path(table).parent for table in config.tables]
    elif isinstance(config, RunConfig):
        found.append(Path(config.workdir))
    return tuple(dict.fromkeys(path.absolute() for path in found if str(path) != "."))


def _fixed(pattern: str) -> Path:
    before = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return Path(before) if before == pattern else Path(before).parent if not before.endswith("/") else Path(before)
