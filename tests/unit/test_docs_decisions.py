"""The tables of failure classes that people read say what the one in code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from phenomhpc.config import ClusterConfig
from phenomhpc.slurm import decide
from phenomhpc.slurm.decide import DECISIONS, FREE, MAX_MORE_MEMORY, MEMORY_FACTOR, Action, FailureClass

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGE = (DOCS / "explanation" / "slurm.md").read_text()
HOW_TO = (DOCS / "how-to" / "debug-a-failed-run.md").read_text()
# Words of which one has to stand in the row of a class with this decision, and those of the other decisions must not.
WORDS = {
    Action.MORE_MEMORY: "the memory",
    Action.NEXT_ATTEMPT: "next attempt",
    Action.STOP: "stop",
    Action.STAY_CANCELLED: "stays cancelled",
}
NUMBERS = {1: "once", 2: "twice", 3: "three times"}


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of the first table whose first column is `class`, by class."""
    lines = text[text.index("| class |") :].splitlines()[2:]
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found[name.strip("`")] = cells
    return found


TABLES = {"the page": rows_of(PAGE), "the code's own docstring": rows_of(decide.__doc__ or "")}


@pytest.mark.parametrize("where", TABLES)
def test_every_class_has_a_row_with_its_decision_and_whether_it_counts(where: str) -> None:
    table = TABLES[where]
    assert set(table) == set(FailureClass)
    for name, (_, decision, counts) in table.items():
        action = DECISIONS[FailureClass(name)]
        assert WORDS[action] in decision, (name, decision)
        # More memory comes with a next attempt; a unit that cannot be read stops nothing, a setting does.
        others = {word for other, word in WORDS.items() if other != action} - {"next attempt"}
        assert not [word for word in others if word in decision], (name, decision)
        again = action in (Action.NEXT_ATTEMPT, Action.MORE_MEMORY)
        assert counts.strip("- ") == ("" if not again else "no" if FailureClass(name) in FREE else "yes"), name
    oom = table[FailureClass.OOM][1]
    assert MEMORY_FACTOR == 2 and "twice the memory" in oom and f"{NUMBERS[MAX_MORE_MEMORY]} at most" in oom


def test_the_page_names_the_budget_of_attempts_and_the_guards_patience() -> None:
    cluster = ClusterConfig()
    assert f"`cluster.max_attempts` ({cluster.max_attempts})" in PAGE
    assert f"`cluster.hang_min_s` ({cluster.hang_min_s:g} s)" in PAGE
    assert f"`cluster.hang_slow_s` ({cluster.hang_slow_s:g} s)" in PAGE
    assert f"`cluster.lost_after_s` ({cluster.lost_after_s:g} s)" in PAGE
    assert f"`cluster.task_minutes` ({cluster.task_minutes:g})" in PAGE


def test_the_how_to_page_has_a_row_for_every_class() -> None:
    assert set(rows_of(HOW_TO)) == set(FailureClass)
