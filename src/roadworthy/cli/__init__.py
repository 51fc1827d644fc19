"""The command line: thin commands over the library. Every refusal is one sentence on stderr and exit code 2."""

from __future__ import annotations

import sys

import click

from roadworthy import __version__
from roadworthy.cli import deliver, measure
from roadworthy.cli.options import EXIT_INPUT, EXIT_INTERRUPT
from roadworthy.errors import RoadworthyError


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="roadworthy")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compress a trained vision model, prove that it still agrees with the original, and ship it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


COMMANDS = (
    deliver.compress,
    deliver.finetune,
    measure.evaluate,
    measure.align,
    measure.bench,
    measure.inspect,
    deliver.demo,
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Entry point of the `roadworthy` command."""
    try:
        code = cli.main(prog_name="roadworthy", standalone_mode=False)
    except click.UsageError as error:
        said = " ".join(error.format_message().split()).rstrip(".").replace(". (Did", " (did").replace(" Did", "; did")
        command = error.ctx.command_path if error.ctx else "roadworthy"
        code = _refuse(f"{said[:1].lower()}{said[1:]}; see `{command} --help`")
    except (RoadworthyError, click.ClickException) as error:
        code = _refuse(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = EXIT_INTERRUPT
    except OSError as error:  # a full disk, too many open files
        where = f"{error.filename}: " if error.filename else ""
        code = _refuse(f"{where}{error.strerror or error}; make room or mend it, and run again")
    sys.exit(code or 0)


def _refuse(sentence: str) -> int:
    click.echo(f"roadworthy: {sentence}", err=True)
    return EXIT_INPUT
