"""The command line of a recipe, read in this process: up to its run, and not into it."""

import contextlib
import functools
import io
import os
import runpy
import signal
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest

from meloformer.command_line import parse_flags
from tests.documents import ROOT


@contextlib.contextmanager
def as_script(recipe: str, *arguments: str) -> Iterator[None]:
    """What a script is run among: imports take seconds, and most recipes share them."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        mock.patch("sys.argv", [recipe, *arguments]),
        mock.patch("meloformer.interrupts.listen"),  # it would be for good, and for all tests
        mock.patch.dict(os.environ, COLUMNS="200"),
    ):
        yield
    for number, handler in kept.items():
        signal.signal(number, handler)  # some recipes end at signals in a way of their own


def run(recipe: str, *arguments: str) -> tuple[object, str, str]:
    """Exit code, stdout and stderr of a recipe."""
    out, err = io.StringIO(), io.StringIO()
    with (
        as_script(recipe, *arguments),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(str(ROOT / recipe), run_name="__main__")
    return ended.value.code, out.getvalue(), err.getvalue()


@functools.cache
def help_of(recipe: str) -> str:
    """What it says of itself."""
    code, said, complaint = run(recipe, "--help")
    assert code == 0, complaint
    return said


@functools.cache
def flags_class_of(recipe: str) -> type:
    """The dataclass that a recipe, or a module that runs like one, hands to `run_recipe`."""
    with as_script(recipe), mock.patch("meloformer.command_line.run_recipe") as asked:
        if recipe.endswith(".py"):
            runpy.run_path(str(ROOT / recipe), run_name="__main__")
        else:
            runpy.run_module(recipe, run_name="__main__")
    found: type = asked.call_args.args[1]
    return found


def flags_of(recipe: str, arguments: Sequence[str]) -> Any:
    """Its flags with these arguments, as its own command line reads them.

    Raises:
        AssertionError: they are refused; what the recipe says.
        MeloFormerError: the dataclass refuses them.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            return parse_flags(flags_class_of(recipe), list(arguments))
    except SystemExit as ended:
        assert ended.code == 0, complaint.getvalue()
        return None
