"""data.where: a filter on the fields table in a small language, e.g. `focus > 0.2 and plate in ["A__1", "A__2"]`.

Comparisons (<, <=, >, >=, ==, !=, in, not in, chained), and, or, not, parentheses, numbers, quoted strings, true, false and
column names; col["..."] for a name that is no word.  Of the measures of quality, which have a value for each channel, focus,
saturated, background and signal mean all channels (the comparison holds when it holds for every one), focus["DNA"] one of
them; nuclei is the count of nuclei.  A field whose value is missing passes neither a condition nor its
contrary.  Read by Python's parser, of whose nodes all others are refused; nothing is evaluated as code.
"""

from __future__ import annotations

import ast
import difflib
import operator
import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from phenomhpc.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
# A list of a thousand plates fits; polars would not survive a recursion much deeper than this allows.
MAX_CHARACTERS = 20_000
_NAMED = {"true": True, "false": False, "True": True, "False": False}


# Short names of the measures: of the fields table's columns, those with a value for each channel, and one without.
_QC_LISTS = {name: f"qc_{name}" for name in ("focus", "saturated", "background", "signal")}
_QC = {**_QC_LISTS, "nuclei": "qc_nuclei"}


def compile_where(text: str, columns: Sequence[str], channels: Sequence[str] = ()) -> pl.Expr:
    """The filter as a polars expression over `columns`; channels: their names, in stored order.

    Raises UsageError naming what is not understood.
    """
    line = _one_line(text)
    if len(line) > MAX_CHARACTERS:
        raise UsageError(f"data.where={line[:40]}...: {len(line)} characters, {MAX_CHARACTERS} at most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in quoted strings, which are taken as they stand
            tree = ast.parse(line, mode="eval").body
        return _Compiler(line, columns, channels).condition(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "nested too deeply"
        raise UsageError(
            f"data.where={line}: cannot be read ({reason}); write such as plate == 'A__1' and site < 3"
        ) from error


def _one_line(text: str) -> str:
    return text.strip().replace("\n", " ")


def _column_name(node: ast.expr) -> str | None:
    """The column that a node names, by itself or as col["..."]."""
    if isinstance(node, ast.Name) and node.id not in _NAMED:
        return node.id
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "col":
        inner = node.slice
        return inner.value if isinstance(inner, ast.Constant) and isinstance(inner.value, str) else None
    return None


class _Compiler:
    def __init__(self, text: str, columns: Sequence[str], channels: Sequence[str]) -> None:
        self._text, self._columns, self._channels = text, columns, channels

    def _refuse(self, what: str) -> UsageError:
        return UsageError(f"data.where={self._text}: {what}")

    def condition(self, node: ast.expr) -> pl.Expr:
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return reduce(join, [self.condition(value) for value in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            parts = [
                self._compare(op, left, right)
                for op, left, right in zip(node.ops, operands, operands[1:], strict=False)
            ]
            return reduce(operator.and_, parts)
        if (name := _column_name(node)) is not None:
            return self._column(name)
        raise self._refuse(f"{ast.unparse(node)} is no condition")

    def _compare(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> pl.Expr:
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple):
                raise self._refuse(f"behind `in` stands a list, not {ast.unparse(right)}")
            found: pl.Expr = self._operand(left).is_in([self._literal(entry) for entry in right.elts])
            return found if isinstance(op, ast.In) else ~found
        if type(op) not in _COMPARE:
            raise self._refuse("`is` is not supported; write ==")
        compare = _COMPARE[type(op)]
        for one, other, swapped in ((left, right, False), (right, left, True)):
            if (name := self._of_all_channels(one)) is not None:
                return self._every_channel(name, compare, other, swapped)
        compared: pl.Expr = compare(self._operand(left), self._operand(right))
        return compared

    def _of_all_channels(self, node: ast.expr) -> str | None:
        """The column of a measure that a node names for all channels at once."""
        name = _column_name(node) or ""
        if name in self._columns and name not in _QC_LISTS.values():
            return None  # a person's own column of that name
        return _QC_LISTS.get(name, name if name in _QC_LISTS.values() else None)

    def _every_channel(
        self, column: str, compare: Callable[[Any, Any], Any], other: ast.expr, swapped: bool
    ) -> pl.Expr:
        import polars as pl

        value = pl.lit(self._literal(other))
        element = compare(value, pl.element()) if swapped else compare(pl.element(), value)
        held: pl.Expr = self._column(column).list.eval(element).list.all()
        return held

    def _of_one_channel(self, node: ast.expr) -> pl.Expr | None:
        """focus["DNA"]: a measure of one channel."""
        if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in _QC_LISTS):
            return None
        inner = node.slice
        name = inner.id if isinstance(inner, ast.Name) else inner.value if isinstance(inner, ast.Constant) else None
        if name not in self._channels:
            raise self._refuse(f"{ast.unparse(node)}: no such channel; there are {', '.join(self._channels) or 'none'}")
        value: pl.Expr = self._column(_QC_LISTS[node.value.id]).list.get(list(self._channels).index(str(name)))
        return value

    def _operand(self, node: ast.expr) -> Any:
        import polars as pl

        if (name := _column_name(node)) is not None:
            return self._column(name)
        if (one := self._of_one_channel(node)) is not None:
            return one
        return pl.lit(self._literal(node))

    def _literal(self, node: ast.expr) -> str | int | float | bool:
        if isinstance(node, ast.Name) and node.id in _NAMED:
            return _NAMED[node.id]
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool):
            return node.value
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        if negative and isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, int | float):  # type: ignore[attr-defined]
            value: int | float = -node.operand.value  # type: ignore[attr-defined]
            return value
        raise self._refuse(f"{ast.unparse(node)} is neither a column, a number nor a quoted string")

    def _column(self, name: str) -> pl.Expr:
        import polars as pl

        if name not in self._columns:
            name = _QC.get(name, name)
        if name in _QC.values() and name not in self._columns:
            raise self._refuse(f"{name}: the store's fields were converted without it; convert with qc=true")
        if name not in self._columns:
            near = difflib.get_close_matches(name, self._columns, 3, 0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(self._columns[:20])}"
            raise self._refuse(f"{name}: no such column of the fields table; {hint}")
        return pl.col(name)


def eligible_rows(fields: pl.DataFrame, text: str, channels: Sequence[str] = ()) -> NDArray[np.int64]:
    """Rows of the snapshot's table (its `field_no`) whose field passes the filter, ascending; a null does not pass.

    channels: the names of the store's channels, in stored order.
    """
    import numpy as np
    import polars as pl
    from polars.exceptions import PolarsError

    try:
        condition = compile_where(text, [name for name in fields.columns if name != "field_no"], channels)
        kept = fields.filter(pl.col("field_no").is_not_null() & condition)["field_no"]
    except (PolarsError, TypeError, OverflowError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"data.where={_one_line(text)}: does not fit the columns' types ({first})") from error
    return np.sort(kept.to_numpy().astype(np.int64))
