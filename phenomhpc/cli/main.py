"""The entry point: registers every verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import sys

import typer
import typer.core

from phenomhpc import __version__
from phenomhpc.cli import jobs
from phenomhpc.cli.arguments import spread_lists
from phenomhpc.cli.job_flags import LIST_OPTIONS
from phenomhpc.errors import WORK_FAILED, PhenomError

# Single verbs: the module's function of the same name.  Groups: the module's `app`.
VERBS = ("init", "demo", "runs", "status", "why", "logs", "cancel", "retry")
GROUPS = ("submit", "store", "checkpoints", "node", "cluster", "config", "bench")

# What a full, read-only or forbidden file system says; a person needs the line, not the traceback.
_PLAIN_OS_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EIO}


def _version(value: bool) -> None:
    if value:
        print(f"phenomhpc {__version__}")
        raise typer.Exit


def build() -> typer.Typer:
    """The whole command.  Verb modules import nothing heavy at the top, so that --help is quick."""
    # Plain help: for rich, typer would escape the brackets of [required], and print the backslash where rich is not used.
    typer.core.HAS_RICH = False
    app = typer.Typer(
        name="phenomhpc",
        help="From raw Cell Painting plates to maps of biology, native to Slurm.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def _main(
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    ) -> None:
        pass

    jobs.register(app)
    for name in VERBS:
        app.command(name)(getattr(importlib.import_module(f"phenomhpc.cli.{name}"), name))
    for name in GROUPS:
        app.add_typer(importlib.import_module(f"phenomhpc.cli.{name}").app, name=name)
    return app


def main() -> None:
    """`phenomhpc`: exits with 0, 1, 2, 3 or 4 as errors.py says; 130 when interrupted."""
    try:
        build()(args=spread_lists(sys.argv[1:], LIST_OPTIONS), prog_name="phenomhpc")
    except PhenomError as error:
        print(f"phenomhpc: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _PLAIN_OS_ERRORS:
            raise
        print(
            f"phenomhpc: {error.filename or 'output'}: {error.strerror}; nothing half-written is left", file=sys.stderr
        )
        sys.exit(WORK_FAILED)
    except KeyboardInterrupt:
        print("phenomhpc: interrupted; what was committed stays, run again to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
