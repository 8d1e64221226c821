"""The typer app that commands register with, and `main`, which turns errors into one line and an exit code."""

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from ..core.code import allow_code, one_command
from ..core.signals import TidyStop
from ..core.terminal import one_line, print
from ..errors import ConfigError, NextEmbedError, shortened

HELP = """Pretrain a transformer to predict the next embedding, see what it learned, use it anywhere.

\b
Examples:
  nextembed train nepa_demo
  nextembed probe runs/nepa_demo
"""

app = typer.Typer(
    help=HELP,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"max_content_width": 110},
    pretty_exceptions_enable=False,
)


def main(args: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code. args: None takes sys.argv."""
    words = sys.argv[1:] if args is None else list(args)
    debug = "--debug" in words  # anywhere on the line
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: file names may not be UTF-8
    stop = TidyStop()
    try:
        with stop, one_command():
            words = allowing([w for w in words if w != "--debug"])
            code = app(words, prog_name="nextembed", standalone_mode=False) or 0
        return (
            _fail("stopped", stop.exit_code, debug=False) if code == 130 else code
        )  # typer took the KeyboardInterrupt
    except KeyboardInterrupt:
        return _fail("stopped", stop.exit_code, debug)
    except NextEmbedError as err:
        return _fail(str(err), err.exit_code, debug)
    except Exception as err:
        if isinstance(err, typer.Abort):
            if not isinstance(err.__cause__, EOFError):
                return _fail("stopped", 130, debug)
            err = err.__cause__  # from a truncated file; typer mistakes it for Ctrl-D
        if hasattr(err, "format_message"):  # typer's usage errors
            said, setting = err.format_message(), _setting_meant(err, words)
            said = said.partition(" (Possible")[0] if setting else said  # options that are spelled alike
            return _fail(f"{said}{setting}", 2, debug)
        if known := _of_the_machine(err):
            return _fail(known, 1, debug)
        reason = " ".join(str(err).split()) or "no message"
        return _fail(f"unexpected {type(err).__name__}: {reason[:300]} (run again with --debug to see where)", 1, debug)


def allowing(words: list[str]) -> list[str]:
    """The line without `--code FILE`, at any position. Allows these files, and those of `my_file.py:MyPart`."""
    kept: list[str] = []
    left = iter(words)
    for word in left:
        name, equals, file = word.partition("=")
        if name == "--code":
            if not (file := file if equals else next(left, "")):
                raise ConfigError("--code needs a FILE")
            allow_code(file)
            continue
        if ".py:" in word:
            from ..core.config import allow_typed

            allow_typed(word)
        kept.append(word)
    return kept


def _setting_meant(err: Exception, words: list[str]) -> str:
    """A suggestion for `--max-steps 10`, for a command that takes settings."""
    name = getattr(err, "option_name", None)
    if not isinstance(name, str) or not words or words[0] not in ("train", "plan", "recipes", "probe", "evaluate"):
        return ""
    from .known import meant

    given = next((word for word in words if word.partition("=")[0] == name), name)
    after = words[words.index(given) + 1 :] if given in words else []
    return meant(name, given.partition("=")[2] or (after[0] if after else "VALUE"))


def _of_the_machine(err: Exception) -> str | None:
    """The message of an error about a file, a name or memory; None for other errors."""
    from ..core.sizes import too_large

    if isinstance(err, OSError) and err.filename is not None:
        return f"{shortened(str(err.filename))}: {err.strerror}"
    if isinstance(err, UnicodeEncodeError):
        return f"{shortened(err.object)!a} is not valid UTF-8"
    if too_large(err) or type(err).__name__ == "OutOfMemoryError":
        reason = shortened(" ".join(str(err).split())) or "out of memory"
        return f"too large for this machine's memory: {reason}"
    return None


def _fail(message: str, code: int, debug: bool) -> int:
    message = shortened(" ".join(message.splitlines()), 2000)
    if debug:
        traceback.print_exc()
    if code == 1 or os.environ.get("RANK", "0") == "0":  # with several ranks, one reports it for all
        print(f"nextembed: {one_line(message)}", file=sys.stderr)
    return code


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"nextembed {version('nextembed')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback on an error.")] = False,
    code: Annotated[
        list[Path] | None,
        typer.Option(
            "--code",
            metavar="FILE",
            help=("Allow running this Python file when a run or model refers to it; may be repeated."),
        ),
    ] = None,
) -> None:
    """Options of every command; `main` takes --debug and --code out of the line before it comes here."""
