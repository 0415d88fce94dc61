"""How every recipe of launch/ reads its flags and ends: one dataclass in, one line on refusal."""

import contextlib
import io
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from meloformer.errors import ConfigError, MeloFormerError
from meloformer.interrupts import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    TerminatedError,
    end_quietly_at_signals,
    ends_with,
    raise_at_signals,
)

Config = TypeVar("Config")

EXIT_REFUSED = 2

# The recipes: beside the package in a checkout, inside it in an installed wheel.
_PACKAGE = Path(__file__).resolve().parent
LAUNCH = _PACKAGE / "launch" if (_PACKAGE / "launch").is_dir() else _PACKAGE.parent / "launch"


def parse_flags(
    config_class: type[Config],
    arguments: Sequence[str] | None = None,
    *,
    description: str | None = None,
) -> Config:
    """Read command line flags into a frozen dataclass; nested dataclasses lose their prefix.

    Args:
        config_class: its fields are the flags and its defaults the only defaults.
        arguments: flags without the program's name; None takes those of this process.
        description: what `--help` says above the flags.

    Raises:
        SystemExit: code 2 for an unknown flag or an impossible value, 0 after `--help`.
    """
    given = sys.argv[1:] if arguments is None else arguments
    refusal = io.StringIO()
    try:
        with contextlib.redirect_stderr(refusal):
            config = tyro.cli(
                config_class,
                # The deepspeed launcher adds it first; ranks come from the environment.
                args=[flag for flag in given if not re.fullmatch(r"--local[_-]rank=-?\d+", flag)],
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
                use_underscores=True,
            )
    except SystemExit as ending:
        if ending.code:
            sys.stderr.write(f"error: {_without_frame(refusal.getvalue())}\n")
        raise
    # It compares as neither too small nor too large, so that no check of a range finds it.
    if (name := _nan_among(config)) is not None:
        sys.stderr.write(f"error: --{name}: found nan, allowed a number\n")
        sys.exit(EXIT_REFUSED)
    return config


def _nan_among(flags: object) -> str | None:
    """The first flag that is no number, those of nested dataclasses included."""
    for name, value in vars(flags).items():
        if is_dataclass(value) and (found := _nan_among(value)) is not None:
            return found
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(one, float) and math.isnan(one) for one in values):
            return name
    return None


def _without_frame(text: str) -> str:
    """What tyro says in a box, as one line."""
    # A frame of ASCII, where the terminal has no other, has a rule below the title.
    lines = [line.strip("╭╮╰╯│─ ") for line in text.splitlines()]
    title, *rest = [line for line in lines if line.strip("-")] or [""]
    said = " ".join(" ".join(rest).split())
    if not said.startswith(title):
        said = f"{title}: {said}"
    for pattern, plain in _PLAINLY:
        said = re.sub(pattern, plain, said)
    return said


def _choices(match: re.Match[str]) -> str:
    found, flag, allowed = match.groups()
    # In an order that changes from call to call; None is what holds where nothing is given.
    names = sorted(set(re.findall(r"'([^']*)'", allowed)) - {"None"})
    return f"{flag}: found {found}, allowed: {', '.join(names)}"


def _near_flags(match: re.Match[str]) -> str:
    found, near = match.groups()
    # A flag is followed by what it takes, and its name inside a help text by other words.
    names = dict.fromkeys(re.findall(r"--\w+(?= [\[{A-Z]|, --no_)", near or ""))
    return f"found {found}, which is no flag" + (f"; near it: {', '.join(names)}" if names else "")


# What tyro says of a flag, and the same as a user says it.
_PLAINLY: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^(?:Value|Parsing) error: (?:Error parsing )?", ""),
    (r"no type matching .*Got errors: .*- <class '\w+'>: ", ""),
    (
        r"invalid literal for int\(\) with base 10: (.*?)(?= Argument helptext|$)",
        r"found \1, allowed a whole number",
    ),
    (
        r"could not convert string to float: (.*?)(?= Argument helptext|$)",
        r"found \1, allowed a number",
    ),
    (r" Argument helptext: .*?(?= For full helptext|$)", ""),
    (
        r"^Invalid choice: invalid choice (.*?) for argument '(.*?)'\. Expected one of \((.*?)\)",
        _choices,
    ),
    (
        r"^Missing argument: Missing value for argument '(.*?)'\. Expected (\d+) values",
        r"\1: found too few values behind it, allowed: \2",
    ),
    (r"^Required options: Missing from .*?: ", "missing: "),
    (r"\.? \(required\)(?= For full helptext|$)", ""),
    (r"\.? \(required\) ", "; "),
    (
        r"^Unrecognized options: (-.*?)(?: Perhaps you meant: (.*?))?(?= For full helptext|$)",
        _near_flags,
    ),
    (
        r"^Unrecognized options: (?!-)(.*?)(?= For full helptext|$)",
        r"found \1, which follows no flag: most flags take one value, and switches take none; "
        "quote what has spaces",
    ),
    (r"[ .]* For full helptext, (?:run:?|see) (.*)$", r"; all flags: \1"),
)


def check_at_least(flags: object, lowest: Mapping[str, int]) -> None:
    """Refuse numbers that are too small; what was not given is left alone.

    Args:
        flags: a dataclass of them.
        lowest: the least that each of some may be.

    Raises:
        ConfigError: names the first that is less.
    """
    for name, allowed in lowest.items():
        value = getattr(flags, name)
        if value is not None and value < allowed:
            raise ConfigError(f"--{name} {value}: allowed: {allowed} or more")


def check_above_zero(flags: object, *names: str) -> None:
    """Refuse numbers that are not above 0 and finite; what was not given is left alone.

    Args:
        flags: a dataclass of them.
        names: of those that are looked at.

    Raises:
        ConfigError: names the first that is none.
    """
    for name in names:
        value = getattr(flags, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name} {value:g}: allowed: above 0")


def ungiven(
    flags: object, by_device: Mapping[str, Mapping[str, Any]], device_type: str
) -> dict[str, Any]:
    """What takes the place of flags that were not given.

    Args:
        flags: a dataclass of them, None where one was not given.
        by_device: values by flag for "cuda", and for "cpu" and whatever else there is.
        device_type: where it will compute.

    >>> from types import SimpleNamespace
    >>> by_device = {"cuda": {"rows": 6, "size": "small"}, "cpu": {"rows": 2, "size": "tiny"}}
    >>> ungiven(SimpleNamespace(rows=3, size=None), by_device, "mps")
    {'size': 'tiny'}
    """
    of_device = by_device["cuda" if device_type == "cuda" else "cpu"]
    return {name: value for name, value in of_device.items() if getattr(flags, name) is None}


def changed_flags(flags: Any) -> list[str]:
    """Flags of a dataclass that are not as they are by default, nested ones as well.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Some:
    ...     drums: bool = True
    ...     bars: int = 4
    >>> changed_flags(Some(drums=False)), changed_flags(Some())
    (['no_drums'], [])
    """
    names = []
    for field in fields(flags):
        value = getattr(flags, field.name)
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        if is_dataclass(value):
            names += changed_flags(value)
        elif value != default:
            names.append(f"no_{field.name}" if default is True else field.name)
    return names


def check_output_file(flag: str, path: Path | None) -> None:
    """Refuse a file that cannot be written at the end, before anything is measured for it.

    Args:
        flag: that names the file.
        path: None where no file is wanted.

    Raises:
        ConfigError: its folder does not exist, or it is a folder itself.
    """
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"{flag} {path}: its folder does not exist; allowed: a file in a folder that does"
        )
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: found a folder; allowed: a file")


def check_json_file(path: Path | None) -> None:
    """Refuse a --json file that cannot be written at the end, or that is somebody's own.

    Args:
        path: see `check_output_file`; what holds JSON already is written anew.

    Raises:
        ConfigError: also where the file is there and holds something else.
    """
    check_output_file("--json", path)
    if path is None or not path.is_file() or not (found := path.read_bytes()):
        return
    try:
        json.loads(found)
    except ValueError:
        raise ConfigError(
            f"--json {path}: found a file that holds no JSON; nothing was written; allowed: a new "
            "file, or one of JSON, which is written anew"
        ) from None


def run_recipe(
    function: Callable[[Config], int | None],
    config_class: type[Config],
    arguments: Sequence[str] | None = None,
    *,
    after_a_stop: str = "what was finished before stands",
) -> None:
    """Parse flags, call the recipe, and end the process with its status.

    Args:
        function: takes the parsed config; returns an exit status, None for success. The docstring
            of its module is what `--help` says.
        config_class: see `parse_flags`.
        arguments: see `parse_flags`.
        after_a_stop: what somebody who stopped the recipe has to know.

    Raises:
        SystemExit: always, unless the recipe raises something that is not a MeloFormerError. A
            MeloFormerError becomes one line on stderr and code 2, so does a place that the user has
            no right to; Ctrl-C one line and code 130, SIGTERM likewise and 143 if the recipe has
            called `interrupts.end_at_signals`.
    """
    try:
        raise_at_signals()
        description = sys.modules[function.__module__].__doc__
        status = function(parse_flags(config_class, arguments, description=description))
    except MeloFormerError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(EXIT_REFUSED)
    except PermissionError as error:
        if error.filename is None:
            raise
        sys.stderr.write(
            f"error: {error.filename}: {error.strerror}; allowed: what this user may read and, "
            "where something is written, write\n"
        )
        sys.exit(EXIT_REFUSED)
    except TerminatedError:
        sys.stderr.write(f"stopped by SIGTERM; {after_a_stop}\n")
        sys.exit(EXIT_TERMINATED)
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped by Ctrl-C; {after_a_stop}\n")
        sys.exit(EXIT_INTERRUPTED)
    finally:
        end_quietly_at_signals()
    ends_with(status or 0)
    sys.exit(status or 0)
