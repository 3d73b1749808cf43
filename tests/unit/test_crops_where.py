"""data.where: a small language, and never more."""

from __future__ import annotations

import polars as pl
import pytest

from phenomhpc.crops.where import MAX_CHARACTERS, eligible_rows
from phenomhpc.errors import UsageError

FIELDS = pl.DataFrame(
    {
        "field_no": [0, 1, None, 2, 3],
        "plate": ["A__1", "A__1", "A__1", "B__1", "B__1"],
        "site": [1, 2, 3, None, 1],
        "is_control": [True, False, True, None, False],
        "concentration_um": [0.5, None, 1.0, 2.5, -1.0],
        "meta_cell line": ["U2OS", "HUVEC", "U2OS", "U2OS", "a  b"],
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("site < 3", [0, 1, 3]),
        ("1 < site <= 3", [1]),
        ("not site < 2", [1]),
        ("plate == 'B__1'", [2, 3]),
        ('plate in ["A__1", "C__1"]', [0, 1]),
        ("plate not in ('A__1',)", [2, 3]),
        ("site in [1, 3] and not is_control", [3]),
        ("is_control", [0]),
        ("not is_control", [1, 3]),
        ("is_control == true or concentration_um > 2", [0, 2]),
        ("concentration_um == -1", [3]),
        ("(site == 1 or site == 2) and plate != 'B__1'", [0, 1]),
        ("3 > site", [0, 1, 3]),
        ("site in []", []),
        ("col['meta_cell line'] == 'U2OS'", [0, 2]),
        ("col['meta_cell line'] == 'a  b'", [3]),
        ("site < 3\n  and plate == 'A__1'", [0, 1]),
        (r"plate == '\d'", []),
    ],
)
def test_a_filter_keeps_the_fields_it_names(text: str, rows: list[int]) -> None:
    assert eligible_rows(FIELDS, text).tolist() == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sitte < 3", "sitte: no such column of the fields table; nearest: site"),
        ("col['meta_cell'] == 'x'", "meta_cell: no such column of the fields table; nearest: meta_cell line"),
        ("field_no == 1", "field_no: no such column"),
        ("__import__('os').system('true')", "is no condition"),
        ("site.bit_length == 1", "neither a column"),
        ("[site for site in (1,)] == 1", "neither a column"),
        ("(lambda: site)() == 1", "neither a column"),
        ("site + 1 == 2", "neither a column"),
        ("plate == f'{site}'", "neither a column"),
        ("plate == b'A'", "neither a column"),
        ("site == None", "neither a column"),
        ("site is 1", "`is` is not supported; write =="),
        ("plate in 'A__1'", "behind `in` stands a list"),
        ("site in [plate]", "neither a column, a number nor a quoted string"),
        ("site", "does not fit the columns' types"),
        ("plate < 3", "does not fit the columns' types"),
        ("site in [1, 'a']", "does not fit the columns' types"),
        ("site < " + "9" * 40, "does not fit the columns' types"),
        ("site < 3 if plate else 1", "is no condition"),
        ("site := 3", "cannot be read"),
        ("site = 3", "cannot be read"),
        ("", "cannot be read"),
        ("(" * 500 + "site < 1" + ")" * 500, "cannot be read"),
        ("not " * 4000 + "is_control", "cannot be read"),
        ("site < 3 or " * MAX_CHARACTERS + "site < 3", "characters, 20000 at most"),
    ],
)
def test_what_is_not_in_the_language_is_named_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        eligible_rows(FIELDS, text)
    assert message in str(raised.value) and str(raised.value).startswith("data.where=")
    assert "\n" not in str(raised.value)


def test_a_filter_as_long_as_allowed_is_evaluated() -> None:
    clause = "site<3 or "
    assert eligible_rows(FIELDS, clause * ((MAX_CHARACTERS - 8) // len(clause)) + "site<3").tolist() == [0, 1, 3]
