"""Uniform refusals: each names the argument, its value, the bound, and the way out."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import Any

_MOST_SEED = 999_999


class InvalidInputError(ValueError):
    """Something that the caller passed cannot be used. The message is one line, fit to be shown as it is."""

    def __init__(self, message: str):
        """Names in it that somebody else chose may hold line breaks, which become spaces."""
        super().__init__(" ".join(message.splitlines()))


def check(condition: bool, message: str) -> None:
    """Raises `InvalidInputError(message)` unless the condition holds."""
    if not condition:
        raise InvalidInputError(message)


def check_number(**values: float) -> None:
    """Each value is a Python number: configurations are written to files, which hold no others."""
    for name, value in values.items():
        other = hasattr(value, "__float__") and not isinstance(value, (int, float))
        check(
            isinstance(value, (int, float)) and not isinstance(value, bool),
            _sentence(f"{name}={value!r} must be a number", f"convert it, float({name})" if other else ""),
        )


def check_positive(**values: float) -> None:
    """Each value is a finite number above 0."""
    check_number(**values)
    for name, value in values.items():
        check(math.isfinite(value) and value > 0, f"{name}={value!r} must be a finite number above 0.")


def check_not_negative(**values: float) -> None:
    """Each value is a finite number of at least 0."""
    check_number(**values)
    for name, value in values.items():
        check(0 <= value < math.inf, f"{name}={value!r} must be a finite number of at least 0.")


def check_whole(minimum: int = 1, way_out: str = "", maximum: int | None = None, **values: int) -> None:
    """Each value is a whole number of at least `minimum`, and at most `maximum` where there is one."""
    for name, value in values.items():
        check(
            isinstance(value, int) and not isinstance(value, bool) and value >= minimum,
            _sentence(
                f"{name}={value!r} must be a whole number of at least {minimum}",
                f"convert it, int({name})" if hasattr(value, "__index__") and not isinstance(value, int) else way_out,
            ),
        )
        check(maximum is None or value <= maximum, _sentence(f"{name}={value!r} must be at most {maximum}", way_out))


def check_seed(seed: int) -> None:
    """Other seeds, of layers and of samples, are made from it and must not overflow."""
    check_whole(minimum=0, maximum=_MOST_SEED, seed=seed)


def check_between(low: float, high: float, **values: float) -> None:
    """Each value lies strictly between `low` and `high`."""
    check_number(**values)
    for name, value in values.items():
        check(low < value < high, f"{name}={value!r} must lie strictly between {low:g} and {high:g}.")


def check_choice(choices: tuple[str, ...], **values: Any) -> None:
    """Each value is one of the choices."""
    for name, value in values.items():
        check(value in choices, f"{name}={value!r} is not known: choose one of {', '.join(choices)}.")


def check_kind(kind: type, way_out: str, **values: Any) -> None:
    """Each value is None or one of that class, for which a name or a file would be an easy mistake."""
    for name, value in values.items():
        shown = repr(value)[:60] if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
        check(value is None or isinstance(value, kind), f"{name}={shown} is no {kind.__name__}: {way_out}.")


def check_path(what: str, path: Path) -> None:
    """The file system can hold such a path, whether or not there is anything; too long a name is refused, for one."""
    try:
        path.exists()
    except OSError as error:
        raise InvalidInputError(f"{what} {path} cannot be used ({error.strerror}): name another path.") from error


def check_readable_by_tensorflow(what: str, path: Path) -> None:
    """TensorFlow takes [ and \\ in names of files for patterns and reads UTF-8 alone; line ends make no names either."""
    odd = {letter for letter in str(path) if letter in "[\\" or unicodedata.category(letter) in ("Cc", "Cs")}
    shown = " ".join(sorted(repr(letter)[1:-1] for letter in odd))
    check(
        not odd,
        f"{what} {str(path)!r}: TensorFlow cannot read files there, for {shown} in it. Choose a folder without.",
    )


def times(shape: tuple[int, ...]) -> str:
    """A shape as messages show it: 28×28×1."""
    return "×".join(map(str, shape))


def first_line(error: BaseException) -> str:
    """What an error of another library says, cut to fit into a message; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _sentence(text: str, way_out: str) -> str:
    return f"{text}: {way_out}." if way_out else f"{text}."
