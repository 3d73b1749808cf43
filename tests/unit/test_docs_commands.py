"""What README and docs/how-to tell people to type exists: every command, every flag, every setting."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest

from phenomhpc.cli.arguments import spread_lists
from phenomhpc.cli.job_flags import JOB_FLAGS, list_options
from phenomhpc.config import resolve
from phenomhpc.config.models import JOBS

with warnings.catch_warnings():  # typer still asks click for names that click is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    import click
    import typer
    from typer.testing import CliRunner

    from phenomhpc.cli.main import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
# A line of a code block, or words between backticks.
_LINE = re.compile(r"^ +(?:\$ )?(phenomhpc [^#\n]*)", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_SETTING = re.compile(r"^[a-z_]+(\.[a-z_]+)*=\S+$")


def commands_of(text: str) -> list[str]:
    """Everything to be typed that begins with phenomhpc, in order.  A run's status block begins with its name, not so."""
    inline = [found[1] for found in _INLINE.finditer(text) if found[1].startswith("phenomhpc ")]
    return [found[1].strip() for found in _LINE.finditer(text)] + inline


def find(words: list[str]) -> tuple[click.Command, list[str], list[str]]:
    """The command that words name, the verbs on the way, and the rest."""
    command: click.Command = typer.main.get_command(build())
    path: list[str] = []
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, path, words = command.commands[words[0]], [*path, words[0]], words[1:]
    return command, path, words


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, ...], str]:
    return {}


def help_of(path: list[str], helps: dict[tuple[str, ...], str]) -> str:
    """What `phenomhpc VERB... --help` prints."""
    key = tuple(path)
    if key not in helps:
        done = CliRunner().invoke(build(), [*path, "--help"], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        helps[key] = done.output
    return helps[key]


def is_setting(text: str, kinds: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Does a job of these kinds take it?"""
    monkeypatch.chdir(folder)
    for kind in kinds:
        try:
            resolve(kind, {}, [text])
        except Exception:
            continue
        return True
    return False


def test_there_are_pages_and_they_name_commands() -> None:
    assert [page.name for page in PAGES] == [
        "README.md", "architectures.md", "arrays.md", "checkpoints.md", "choose-data.md", "convert.md", "debug-a-failed-run.md",
        "drift.md", "elastic.md", "embed.md", "evaluate.md", "foreign-scripts.md", "nodes.md", "preemption.md", "raw-plates.md",
        "watch-a-pretraining.md",
    ]  # fmt: skip
    assert all(len(commands_of(page.read_text())) >= 5 for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_flag_exists(
    page: Path, helps: dict[tuple[str, ...], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in commands_of(page.read_text()):
        typed = shlex.split(line)[1:]
        words = spread_lists(typed, list_options(typed))
        command, path, rest = find(words)
        assert path and not isinstance(command, click.Group), f"{page.name}: {line}: no such command"
        known = {option for parameter in command.params for option in parameter.opts}
        text = help_of(path, helps)
        for word in rest:
            flag = word.split("=")[0]
            if flag.startswith("-") and flag != "--command":  # spread from behind --
                assert flag in known and flag in text, f"{page.name}: {line}: {flag} is no flag of {' '.join(path)}"
            elif _SETTING.match(word):
                kinds = [path[-1]] if path[-1] in JOB_FLAGS else list(JOB_FLAGS)
                assert is_setting(word, kinds, tmp_path, monkeypatch), f"{page.name}: {line}: {word} is no setting"
        command.make_context(" ".join(path), list(rest))  # click itself takes it: nothing too many, nothing missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_and_setting_in_the_text_exists(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = typer.main.get_command(build())
    flags: set[str] = set()
    pending: list[click.Command] = [root]
    while pending:
        command = pending.pop()
        flags |= {option for parameter in command.params for option in parameter.opts}
        pending += command.commands.values() if isinstance(command, click.Group) else []
    for found in _INLINE.finditer(page.read_text()):
        first = found[1].split()[0]
        if first.startswith("--") and first != "--":
            assert first in flags, f"{page.name}: `{found[1]}`: no command has this flag"
        elif _SETTING.match(first) and not first.startswith(("strategy=", "key=")):  # Lightning's; any
            value = first.replace("=N", "=2")
            assert is_setting(value, list(JOB_FLAGS), tmp_path, monkeypatch), f"{page.name}: `{first}` is no setting"
        elif re.match(r"^(cluster|checkpoint|optim)\.[a-z_]+$", first):
            group, key = first.split(".")
            models = [model.model_fields[group].annotation for model in JOBS.values() if group in model.model_fields]
            assert any(key in getattr(model, "model_fields", {}) for model in models), f"{page.name}: {first}"


def test_what_does_not_exist_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_setting("cluster.max_taks=3", list(JOB_FLAGS), tmp_path, monkeypatch)
    command, path, rest = find(["retry", "RUN", "--no-such-flag"])
    assert path == ["retry"] and rest == ["RUN", "--no-such-flag"]
    with pytest.raises(click.NoSuchOption):
        command.make_context("retry", list(rest))
    assert find(["wy", "RUN"])[1] == []


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    return [found for name, below in command.commands.items() for found in every_command(below, (*path, name))]


def test_help_says_what_every_word_and_flag_is() -> None:
    """Words without a flag too: click 8.5 clears the help that typer 0.20 sets for them."""
    for path, command in every_command(typer.main.get_command(build())):
        context = click.Context(command, info_name=path[-1])
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is not None:  # hidden ones have none
                assert re.search("[a-z]{2}", record[1].replace("[required]", "")), (
                    f"{path}: {parameter.name} has no help"
                )
                assert "\\" not in record[1], f"{path}: {record}"
