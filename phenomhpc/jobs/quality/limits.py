"""Fixed limits, written as training takes them (data.where): what each condition would leave out."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.where import eligible_rows
from phenomhpc.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

# What how-to/convert.md begins with; a person's own come by --where.
DEFAULT = "focus > 0.2 and saturated < 0.01"


def conditions_of(text: str) -> tuple[str, ...]:
    """The conditions that `and` joins, one by one, so that each can be named as a reason; other text as it is."""
    try:
        tree = ast.parse(text.strip().replace("\n", " "), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return (text,)  # for eligible_rows to refuse, in its words
    if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
        return tuple(ast.unparse(part) for part in tree.values)
    return (text.strip(),)


def left_out(
    fields: pl.DataFrame, conditions: Sequence[str], channels: Sequence[str], flag: str = "--where"
) -> NDArray[np.bool_]:
    """bool (fields, conditions): the usable fields for which a condition does not hold.  Raises UsageError naming `flag`."""
    numbers = fields["field_no"]
    usable = numbers.is_not_null().to_numpy()
    found = np.zeros((fields.height, len(conditions)), bool)
    for place, condition in enumerate(conditions):
        try:
            kept = eligible_rows(fields, condition, channels)
        except UsageError as error:
            raise UsageError(str(error).replace("data.where=", f"{flag} ", 1)) from error
        found[:, place] = usable & ~np.isin(numbers.fill_null(-1).to_numpy(), kept)
    return found
