"""The command-line application: verbs, exit codes, and the one place that prints errors."""

import sys
from typing import NoReturn

import typer

from offaxis.errors import OffaxisError

__all__ = ["build", "main"]

_INTERRUPTED = 130


def build() -> typer.Typer:
    """The application with every verb."""
    from offaxis.cli import (
        compare,
        contribute,
        delta,
        demo,
        describe,
        evaluate,
        gates,
        intervene,
        lab,
        mask,
        predict,
        train,
    )

    app = typer.Typer(
        name="offaxis",
        help="See where post-training moves a language model's weights, beside the nulls.",
        epilog="Any verb takes --debug, which shows the traceback of an error.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback(invoke_without_command=True)
    def offaxis(
        version: bool = typer.Option(False, "--version", help="Print the version and stop."),
    ) -> None:
        """See where post-training moves a language model's weights, beside the nulls."""
        if version:
            from offaxis import __version__

            print(f"offaxis {__version__}")
            raise typer.Exit

    app.command(name="describe")(describe.describe)
    app.command(name="compare")(compare.compare)
    app.command(name="contribute")(contribute.contribute)
    app.command(name="pool")(contribute.pool)
    app.command(name="gates")(gates.gates)
    app.command(name="demo")(demo.demo)
    app.command(name="mask")(mask.mask)
    app.command(name="train", context_settings=train.EXTRA_FLAGS)(train.train)
    app.command(name="eval")(evaluate.evaluate)
    app.add_typer(delta.app)
    app.add_typer(intervene.app)
    app.add_typer(predict.app)
    app.add_typer(lab.app)
    return app


def _stopped() -> NoReturn:
    print("offaxis: stopped by Ctrl-C; nothing half-written is left", file=sys.stderr)
    sys.exit(_INTERRUPTED)


def main() -> NoReturn:
    """Run the command line.

    Exit status: 0 on success, 1 on bad input or a failure, 2 on bad syntax, 130 on Ctrl-C. A
    traceback is shown only with `--debug`.
    """
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        build()(args=arguments)
    except KeyboardInterrupt:
        _stopped()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            _stopped()
        raise
    except OffaxisError as error:
        if debug:
            raise
        print(f"offaxis: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        name = type(error).__name__
        print(
            f"offaxis: {name}: {error}; run again with --debug for the traceback", file=sys.stderr
        )
        sys.exit(1)
    sys.exit(0)
