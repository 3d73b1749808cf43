"""The flags of every job, once: `phenomhpc JOB` and `phenomhpc submit JOB` are made from the same table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option: its name, its type, and the dotted setting it fills (None: read by the verb itself)."""

    name: str
    help: str
    type: Any = str
    key: str | None = None
    multiple: bool = False
    hidden: bool = False
    positional: bool = False

    @property
    def option(self) -> str:
        return f"--{self.name}"

    @property
    def parameter(self) -> str:
        return self.name.replace("-", "_")


def _path(name: str, help: str, *, multiple: bool = False) -> Flag:
    return Flag(name=name, help=help, key=name, multiple=multiple)


_RUNS = _path("runs", "Folder of the run directories.")
_PLATES = _path("plates", "Raw plates: folders or globs, several of them.", multiple=True)
_STORE = _path("store", "The Zarr store.")
_ANNOTATIONS = _path("annotations", "Folder of two-column relationship files.")

JOB_FLAGS: dict[str, tuple[Flag, ...]] = {
    "convert": (
        _PLATES,
        _STORE,
        _path(
            "layout",
            "Raw layout: auto (looks at the folder), phenix, cellvoyager, imagexpress, gallery, rxrx, omezarr.",
        ),
        _path("metadata", "CSV joined by plate and well; default: the one the layout brings."),
        Flag(
            name="plate-format",
            help="Wells of the plates, where the layout does not say: 6 to 1536.",
            type=int,
            key="plate_format",
        ),
        Flag(name="z", help="Of z stacks: all planes as fields, max or focus projected, or one plane's name.", key="z"),
        Flag(
            name="illumination",
            help="Uneven light: keep (as metadata), apply what the layout says, or estimate it from the plate.",
            key="illumination",
        ),
        Flag(
            name="dtype",
            help="uint8: 16-bit pixels through a stored look-up table; default: the source's.",
            key="dtype",
        ),
        Flag(name="verify", help="Read every shard back from the disk before it counts.", type=bool, key="verify"),
        Flag(name="new", help="Pass over plates that the store holds whole.", type=bool, key="new"),
        Flag(name="timepoint", help="The timepoint to convert; default: all.", type=int, key="timepoint"),
        _RUNS,
    ),
    "rechunk": (
        Flag(name="store", help="The store to copy.", key="store", positional=True),
        _path("to", "Folder of the copy; made if absent."),
        Flag(name="verify", help="Read every shard back from the disk before it counts.", type=bool, key="verify"),
        _RUNS,
    ),
    "pretrain": (
        _path("store", "One or more Zarr stores.", multiple=True),
        Flag(
            name="init-from",
            help="Begin with the weights of a step folder or a run (its newest committed checkpoint), at step 0.",
            key="init_from",
        ),
        _RUNS,
    ),
    "embed": (
        _STORE,
        _path("checkpoint", "A step folder, an exported file, or a run (its newest committed checkpoint)."),
        _path("out", "Folder of the embeddings; default RUN/embeddings."),
        Flag(name="new", help="Take only what is absent under this checkpoint's digest.", type=bool, key="new"),
        Flag(
            name="blocks",
            help="Further blocks in the same pass, into EMB/blocks: their numbers, or all.",
            key="blocks",
            multiple=True,
        ),
        _RUNS,
    ),
    "evaluate": (
        _path("embeddings", "Folder of embeddings, a run, or anybody's Parquet with Metadata_* columns."),
        _ANNOTATIONS,
        _path("unexpressed", "File of unexpressed genes, one per line."),
        _path("arms", "Table of the genes' chromosome arms, loci or positions."),
        _path("metadata", "CSV or Parquet with the wells' metadata, where the embeddings have none."),
        Flag(name="blocks", help="main, or all: probe every embedded block and name the best.", key="blocks"),
        _RUNS,
    ),
    "run": (
        Flag(
            name="command",
            help="A word of the command, as spread from behind --.",
            key="command",
            multiple=True,
            hidden=True,
        ),
        _path("workdir", "Folder in which the command is run; default: this one."),
        Flag(
            name="snapshot-code",
            help="Run a copy of the git tree that the folder lies in, however large it is.",
            type=bool,
            key="snapshot_code",
        ),
        _RUNS,
    ),
    "pipeline": (
        _PLATES,
        _STORE,
        _ANNOTATIONS,
        _path("new", "Raw plates to add to a store and to --embeddings, which are scored anew.", multiple=True),
        _path("embeddings", "With --new: the folder of embeddings, or the run that made it."),
        _RUNS,
    ),
}

JOB_HELP = {
    "convert": "Raw plates to one Zarr store.",
    "rechunk": "A store in another codec (codec=archive, training, fast, raw), chunk edge (chunk_px) or shard size (shard_mb).",
    "pretrain": "Pretrain a masked autoencoder on crops of a store.",
    "embed": "Every well of a store through the encoder of a checkpoint.",
    "evaluate": "Score embeddings as a map against known relationships.",
    "run": "Any script: phenomhpc run [flags] -- python train.py ... (on Slurm: phenomhpc submit run ...).",
    "pipeline": "convert, pretrain, embed and evaluate, one after the other; --new RAW: all but pretrain, of what is new.",
}

# Read by the verb here, and not behind `submit`.
CHECK_FLAGS: dict[str, tuple[Flag, ...]] = {
    "embed": (
        Flag(
            name="check",
            help="Read the embeddings in --out back and hold them against the store: each well once; embed nothing.",
            type=bool,
        ),
    )
}

# Jobs that have their verb here in another group than their own: phenomhpc store rechunk.
BELOW_STORE = ("rechunk",)

HERE_FLAGS = (
    Flag(name="name", help="Name of the run; default KIND-DATE-TIME-XXXX."),
    Flag(name="new-run", help="Never go on with an unfinished run of the same settings.", type=bool),
)

SUBMIT_FLAGS = (
    Flag(name="name", help="Name of the run; default KIND-DATE-TIME-XXXX."),
    Flag(
        name="nodes",
        help="Nodes of the gang; 2:4 goes on with fewer, down to 2, when one is lost.",
        key="cluster.nodes",
    ),
    Flag(name="gpus-per-node", help="GPUs per node, one rank each.", type=int, key="cluster.gpus_per_node"),
    Flag(name="time", help="Time limit of a task: minutes, h:mm:ss, d-hh:mm:ss, 12h."),
    Flag(name="partition", help="Slurm partition.", key="cluster.partition"),
    Flag(name="account", help="Slurm account.", key="cluster.account"),
    Flag(name="qos", help="Slurm quality of service.", key="cluster.qos"),
    Flag(name="exclude", help="Nodes not to use, separated by commas.", key="cluster.exclude"),
    Flag(
        name="allow-drift",
        help="Train on nodes that differ in what the site insists on; provenance says so.",
        type=bool,
        key="cluster.allow_drift",
    ),
    Flag(name="mail-type", help="Mail at the end of the run, once: END, FAIL or ALL.", key="cluster.mail_type"),
    Flag(name="mail-user", help="Who gets the mail.", key="cluster.mail_user"),
    Flag(
        name="require-clean",
        help="Refuse code with changes that are not committed.",
        type=bool,
        key="cluster.require_clean",
    ),
    Flag(name="after", help="Start when this run has finished."),
    Flag(name="dry-run", help="Print the plan and the script; submit nothing. Needs no Slurm.", type=bool),
    Flag(name="wait", help="Wait for the end and return the run's exit code.", type=bool),
)

# Of what a job will ask for: both here and behind `submit`; nothing is started.
ESTIMATE_FLAGS: dict[str, tuple[Flag, ...]] = {
    "pretrain": (
        Flag(
            name="estimate",
            help="Say what the run would cost and ask of GPUs, file system and cores; start nothing.",
            type=bool,
        ),
        Flag(name="gpu", help="With --estimate: the GPU it would run on (h100, h200, a100, ...); default h100."),
        Flag(name="mfu", help="With --estimate: share of its peak that is used, 0 to 1; default 0.35.", type=float),
        Flag(
            name="gpu-crops-per-s",
            help="With --estimate: crops per second that a GPU trains; default: by its peak and --mfu.",
            type=float,
        ),
        Flag(
            name="core-crops-per-s",
            help="With --estimate: crops per second that a core reads; default: measured on this machine.",
            type=float,
        ),
        Flag(
            name="block-kib",
            help="With --estimate: block of the file system, KiB; default: what it says itself.",
            type=int,
        ),
        Flag(name="json", help="With --estimate: print JSON.", type=bool),
    )
}

_RECIPE = Flag(name="recipe", help="Another recipe: a name in jobs/ or a YAML file.")


def list_options(words: Sequence[str]) -> list[str]:
    """The options that take several words, in a command line of these: `--new` does of a pipeline, and of no other job."""
    kinds = [word for word in words[:2] if word in JOB_FLAGS][:1] or [*JOB_FLAGS]
    flags = [flag for kind in kinds for flag in JOB_FLAGS[kind]]
    single = {flag.option for flag in flags if not flag.multiple}
    return sorted({flag.option for flag in flags if flag.multiple} - (single if len(kinds) > 1 else set()))


Action = Callable[[str, dict[str, Any], list[str], dict[str, Any]], None]


def _parameter(flag: Flag) -> inspect.Parameter:
    import typer  # here: Python callers read the table without a command line

    from phenomhpc.cli.complete import complete_recipe, complete_run

    if flag.positional:
        argument = typer.Argument(..., metavar=flag.name.upper(), help=flag.help, show_default=False)
        return inspect.Parameter(flag.parameter, inspect.Parameter.KEYWORD_ONLY, default=argument, annotation=flag.type)

    complete: Any = {
        "recipe": complete_recipe,
        "after": complete_run,
        "checkpoint": complete_run,
        "init-from": complete_run,
    }.get(flag.name)

    kind: Any = list[str] if flag.multiple else flag.type
    switch = flag.type is bool
    default = typer.Option(
        False if switch else None,
        flag.option,
        help=flag.help,
        show_default=False,
        hidden=flag.hidden,
        autocompletion=complete,
    )
    annotation = bool if switch else kind | None
    return inspect.Parameter(flag.parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def job_command(kind: str, own: Sequence[Flag], action: Action) -> Callable[..., None]:
    """A typer command of job `kind` with its flags and the verb's `own`; calls action(kind, settings, overrides, own values).

    settings: dotted key -> value, None where not given.
    """
    import typer

    from phenomhpc.cli.complete import complete_setting

    flags = (*JOB_FLAGS[kind], _RECIPE, *own, *ESTIMATE_FLAGS.get(kind, ()))

    def command(**values: Any) -> None:
        overrides = values.pop("overrides") or []
        settings: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for flag in flags:
            value = values[flag.parameter]
            if flag.key is None:
                rest[flag.parameter] = value
            else:
                # An absent list or switch says nothing, so that recipes and defaults keep their word.
                settings[flag.key] = None if value is None or value is False or value == [] else value
        action(kind, settings, overrides, rest)

    words = typer.Argument(
        None,
        metavar="[KEY=VALUE]...",
        help=f"Settings over the recipe's; `phenomhpc config show {kind}` lists them.",
        show_default=False,
        autocompletion=complete_setting,
    )
    parameters = [_parameter(flag) for flag in flags]
    parameters.append(
        inspect.Parameter("overrides", inspect.Parameter.KEYWORD_ONLY, default=words, annotation=list[str] | None)
    )
    signature = inspect.Signature(parameters)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = JOB_HELP[kind]
    command.__name__ = kind
    return command
