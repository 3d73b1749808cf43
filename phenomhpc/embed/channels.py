"""Which of a store's channels an encoder sees; and, like the names of everything a plan needs, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from phenomhpc.errors import UsageError


def match_channels(store_channels: Sequence[str], encoder_channels: Sequence[str], store: str) -> list[int]:
    """Index into the store's channels of each of the encoder's, by name.

    Channels the encoder does not know are left out.  Raises UsageError naming a missing one.
    """
    missing = [name for name in encoder_channels if name not in store_channels]
    if missing:
        raise UsageError(
            f"store {store}: has no channel {', '.join(missing)} (it has {', '.join(store_channels)}); "
            "the checkpoint was trained with it, so embed a store that has it or train on this one"
        )
    return [list(store_channels).index(name) for name in encoder_channels]
