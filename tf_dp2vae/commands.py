"""What every command does alike: flags from a frozen dataclass by a library, and refusals in one line with exit code 2.

An interruption by Ctrl-C is one line too, with exit code 130, as shells have it; so is the end of whoever read the output,
as of `head`, with 141.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from argparse import Action
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from simple_parsing import ArgumentParser, DashVariant
from simple_parsing.help_formatter import SimpleHelpFormatter
from simple_parsing.helpers.custom_actions import BooleanOptionalAction
from simple_parsing.wrappers.field_metavar import get_metavar

from tf_dp2vae.validation import InvalidInputError

T = TypeVar("T")
USAGE_ERROR, INTERRUPTED, UNREAD = 2, 130, 141


class _Help(SimpleHelpFormatter):
    def _get_help_string(self, action: Action) -> str | None:
        """The library's own, but for a default of None: the sentence before it says what that means."""
        text = super()._get_help_string(action)
        return text.replace(" (default: %(default)s)", "") if text and action.default is None else text


class _OneLineParser(ArgumentParser):
    def _preprocessing(self, *args: Any, **kwargs: Any) -> None:
        """The library's own, which makes the flags; then they are put into words for who asks for help.

        It takes a flag that may be None for one whose value may be left out, calls one without dashes and each group by
        names in this program, and gives each switch, off by default, another that keeps it off.
        """
        super()._preprocessing(*args, **kwargs)
        for action in self._actions:
            if isinstance(action, BooleanOptionalAction):
                action.metavar = "[true|false]"
                for name in action.negative_option_strings:
                    self._option_string_actions.pop(name, None)  # once: the library may call this again
                action.option_strings = [
                    name for name in action.option_strings if name not in action.negative_option_strings
                ]
            elif not action.option_strings:
                action.metavar = action.dest.rpartition(".")[2]
            elif action.nargs == "?":
                action.nargs, action.metavar = None, (get_metavar(action.type) or "").strip("[]") or None
        for group in self._action_groups:
            if group.description:
                group.title, group.description = group.description.strip().partition(".")[0], None

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {' '.join(message.split())} (--help lists all flags)", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def parse(flags: type[T], description: str | None, arguments: list[str] | None = None, default: T | None = None) -> T:
    """Flags from the command line (or from `arguments`); those not given are the default's."""
    parser = _OneLineParser(
        prog=_program(),
        description=description,
        add_option_string_dash_variants=DashVariant.DASH,
        allow_abbrev=False,
        formatter_class=_Help,
    )
    parser.add_arguments(flags, dest="flags", default=default)
    try:
        return parser.parse_args(arguments).flags
    except InvalidInputError:
        raise
    except ValueError as error:
        raise InvalidInputError(str(error)) from error


def _one_line(text: str) -> str:
    """Line ends and the like, which a file's name may hold, written as Python writes them."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _program() -> str:
    """The command's name: a file's, or that of the package behind `python -m`."""
    file = Path(sys.argv[0])
    return file.name if file.name != "__main__.py" else ".".join(file.parts[-3:-1])


def one_line_errors(main: Callable[[], Any]) -> Callable[[], Any]:
    """Turns refusals into one line on standard error and exit code 2; Ctrl-C and a closed pipe into one, and 130 and 141.

    Other exceptions keep their traceback.
    """

    @functools.wraps(main)
    def wrapped() -> Any:
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the program runs
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere  # None, where the shell closed them
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # an ε that the terminal cannot show ends nothing
        try:
            return _flushed(main)
        except InvalidInputError as error:
            _end(f"{_program()}: {_one_line(str(error))}", USAGE_ERROR, nowhere)
        except KeyboardInterrupt as interruption:
            # A line of its own: what came before may be a progress bar.
            _end(f"\n{_program()}: {_one_line(str(interruption) or 'interrupted')}", INTERRUPTED, nowhere)
        except BrokenPipeError as end:
            # With words of ours, a run that can be resumed; without, whoever read the output had seen enough.
            _end(f"{_program()}: {_one_line(str(end))}" if end.errno is None else "", UNREAD, nowhere)

    return wrapped


def _flushed(main: Callable[[], Any]) -> Any:
    """What it returns or exits with, once all that it printed is out."""
    try:
        result = main()
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return result


def _end(line: str, code: int, nowhere: IO[str]) -> NoReturn:
    """Ends the program with the line on standard error, where somebody reads that still, and the exit code."""
    for stream, number, text in ((sys.stdout, 1, ""), (sys.stderr, 2, f"{line}\n" if line else "")):
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere.fileno(), number)  # else Python's own last flush fails once more, and decides the exit code
    sys.exit(code)
