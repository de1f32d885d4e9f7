"""The ``joulegate`` command: a table of commands, each loaded from its own file only when it is asked for.

To add a command, write ``cli/NAME.py`` with one public object called ``command`` and add a line to ``COMMANDS``:

* ``command`` is a function with typer annotations; its docstring is the help text, and the ``int`` it returns, if any,
  is the exit code (0 done, 1 the thing checked is bad);
* or it is a ``typer.Typer`` with commands of its own (see ``cli/config.py``), each with ``epilog=example("...")``.

Whatever a command cannot do it raises: ``UserFault`` with one line for the person (exit 2), or any exception that
``faults.explain`` knows. It prints to stdout only when its work is done, so that stdout stays empty on a fault.
Imports that cost more than a few milliseconds (numpy, FastAPI, torch) stand inside the command's function.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from joulegate.cli import faults
from joulegate.cli.examples import example


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of the command list: the module that holds it, what it does, and an example that runs."""

    module: str
    summary: str
    example: str


COMMANDS: Mapping[str, Listed] = {
    "advise": Listed(
        "joulegate.cli.advise",
        "Say what load comes next: observations in, recommendations out, in virtual time.",
        "joulegate advise --config advise.toml < observations.jsonl > recommendations.jsonl",
    ),
    "attribute": Listed(
        "joulegate.cli.attribute",
        "Give each request of a recorded log its joules.",
        "joulegate attribute --readings readings.csv --spans spans.csv --json",
    ),
    "config": Listed("joulegate.cli.config", "Show or check the settings.", "joulegate config show"),
    "demo": Listed(
        "joulegate.cli.demo", "Generate images and say what each cost in joules.", "joulegate demo --requests 12"
    ),
    "doctor": Listed(
        "joulegate.cli.doctor", "Say of each sensor whether it is measured, and what to do.", "joulegate doctor --json"
    ),
    "estimate": Listed(
        "joulegate.cli.estimate",
        "Say what a request will take in joules before it runs.",
        "joulegate estimate --model FLUX.1-dev --gpu H100 --images 4 --json",
    ),
    "factors": Listed(
        "joulegate.cli.factors", "Build, list, compare and pin emission factor sets.", "joulegate factors show DEU"
    ),
    "grid": Listed(
        "joulegate.cli.grid",
        "Say how clean the electricity is now, and when work that can wait should run.",
        "joulegate grid --country DEU",
    ),
    "run": Listed(
        "joulegate.cli.run",
        "Run the daemon: meter this host, keep the ledger, serve HTTP.",
        "joulegate run --source twin --port 9288",
    ),
    "version": Listed("joulegate.cli.version", "Say what is installed here.", "joulegate version --json"),
}


def load_command(name: str) -> Any:
    """Import the module of command ``name`` and build it, with its example in the help text."""
    listed = COMMANDS[name]
    command = importlib.import_module(listed.module).command
    if isinstance(command, typer.Typer):
        command.info.help = command.info.help or listed.summary
        command.info.epilog = example(listed.example)
        return typer.main.get_command(command)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, epilog=example(listed.example))(command)
    return typer.main.get_command(alone)


class LazyGroup(TyperGroup):
    """Knows its commands by their summaries; help and completion need no more, so only a call loads the real one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Swap the placeholder of the list for the command itself."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        return name, placeholder if name is None else load_command(name), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a reader of stdout that went away ends it, before typer calls that a plain failure (1)."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _abandon_stdout()
            raise typer.Exit(faults.EXIT_BROKEN_PIPE) from None


def build() -> Any:
    """The root command with one placeholder a line of ``COMMANDS``."""
    app = typer.Typer(
        cls=LazyGroup,
        help="Energy meter, carbon ledger and throttle adviser of image-generation services.",
        epilog=example("joulegate demo"),
        rich_markup_mode=None,
        invoke_without_command=True,
        context_settings={"help_option_names": ["--help", "-h"]},
    )

    @app.callback()
    def root(
        context: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    ) -> None:
        if version:
            from joulegate.cli.version import own_version

            typer.echo(f"joulegate {own_version()}")
            raise typer.Exit
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    for name, listed in COMMANDS.items():
        app.command(name, help=listed.summary)(_placeholder)
    return typer.main.get_command(app)


def _placeholder() -> None:
    """Stand in the command list for a command that is not loaded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; faults become lines on stderr, never a traceback."""
    try:
        outcome = build().main(args=arguments, prog_name="joulegate", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        return faults.EXIT_BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort):
        return faults.EXIT_INTERRUPTED
    except typer.TyperException as error:
        return _show((_usage_line(error),), faults.EXIT_USAGE)
    except Exception as error:  # noqa: BLE001 - the last edge: whatever it is, the reader gets one line of it
        if os.environ.get("JOULEGATE_DEBUG"):
            traceback.print_exc()
        return _show(*faults.explain(error))
    return outcome if isinstance(outcome, int) else 0


def _show(lines: Sequence[str], exit_code: int) -> int:
    for line in lines:
        print(f"joulegate: {line}", file=sys.stderr)
    return exit_code


def _usage_line(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "joulegate"
    message = " ".join(error.format_message().split())
    return f"{message.rstrip('.')}; see '{path} --help'"


def _abandon_stdout() -> None:
    # The interpreter flushes stdout once more as it exits, and would complain of the same broken pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
