"""Units of work: one by one for those who do them, as columns for those who plan millions of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, overload

# Rows that are turned into Unit objects at once when columns are walked through.
_STRIDE = 65_536


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The smallest piece of work that is done or not done.

    `first` and `count` are a range of whatever the job counts (fields of a shard, wells of a plate); cost in seconds.
    """

    unit_id: str
    kind: str
    plate: str | None = None
    first: int = 0
    count: int = 1
    cost_s: float = 0.0
    digest: str = ""
    task: int = 0


@lru_cache(maxsize=1)
def unit_schema() -> Any:
    """The pyarrow schema of units; what repeats from row to row is held once."""
    import pyarrow as pa

    repeated = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("unit_id", pa.string()),
            ("kind", repeated),
            ("plate", repeated),
            ("first", pa.uint64()),
            ("count", pa.uint32()),
            ("cost_s", pa.float32()),
            ("digest", repeated),
            ("task", pa.uint32()),
        ]
    )


class Units(Sequence[Unit]):
    """Units as columns of a pyarrow table: a sequence of Unit that takes some 50 bytes a unit.  Immutable."""

    def __init__(self, table: Any) -> None:
        """table: a pyarrow table with the columns of `unit_schema`."""
        self.table = table

    @classmethod
    def of(cls, units: Sequence[Unit]) -> Units:
        """The same units as columns."""
        if isinstance(units, Units):
            return units
        import pyarrow as pa

        return cls(pa.Table.from_pylist([asdict(unit) for unit in units], schema=unit_schema()))

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> Units:
        """From arrays (numpy, pyarrow, lists) by the names of Unit's fields; those without a default must be there."""
        import pyarrow as pa

        schema, length = unit_schema(), len(columns["unit_id"])
        defaults = {"plate": None, "first": 0, "count": 1, "cost_s": 0.0, "digest": "", "task": 0}
        arrays = []
        for field in schema:
            value = columns.get(field.name, defaults.get(field.name))
            if value is None or isinstance(value, str | int | float):
                arrays.append(_constant(value, length, field.type))
                continue
            given = value if isinstance(value, pa.ChunkedArray) else pa.array(value)
            plain = pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(given.type)
            arrays.append(given.dictionary_encode().cast(field.type) if plain else given.cast(field.type))
        return cls(pa.table(arrays, schema=schema))

    @classmethod
    def concat(cls, parts: Iterable[Units]) -> Units:
        """Several after each other, not copied: for who plans plate by plate."""
        import pyarrow as pa

        return cls(pa.concat_tables([unit_schema().empty_table(), *(part.table for part in parts)]))

    def with_tasks(self, tasks: Any) -> Units:
        """The same units, given (as a numpy array) to these tasks."""
        import pyarrow as pa

        place = unit_schema().get_field_index("task")
        return Units(self.table.set_column(place, unit_schema().field("task"), pa.array(tasks, pa.uint32())))

    def of_task(self, task: int) -> Units:
        """The units of one task, in order."""
        import pyarrow.compute as pc

        return Units(self.table.filter(pc.equal(self.table["task"], task)))

    def numpy(self, name: str) -> Any:
        """A column of numbers as a numpy array."""
        return self.table[name].to_numpy()

    @cached_property
    def num_tasks(self) -> int:
        """Different tasks."""
        import pyarrow.compute as pc

        return int(pc.count_distinct(self.table["task"]).as_py())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Unit: ...
    @overload
    def __getitem__(self, index: slice) -> Units: ...
    def __getitem__(self, index: int | slice) -> Unit | Units:
        if isinstance(index, slice):
            import numpy as np

            return Units(self.table.take(np.arange(len(self))[index]))
        place = range(len(self))[index]
        return Unit(**self.table.slice(place, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Unit]:
        for start in range(0, len(self), _STRIDE):
            for row in self.table.slice(start, _STRIDE).to_pylist():
                yield Unit(**row)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(left == right for left, right in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


def _constant(value: Any, length: int, kind: Any) -> Any:
    """A column of one value."""
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_dictionary(kind):
        return pa.array(np.full(length, value, kind.to_pandas_dtype()), kind)
    if value is None:
        return pa.nulls(length, kind)
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(length, np.int32)), pa.array([value], pa.string()))
