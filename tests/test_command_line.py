import errno
import math
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tyro

from meloformer.command_line import (
    changed_flags,
    check_above_zero,
    check_at_least,
    check_json_file,
    parse_flags,
    run_recipe,
    ungiven,
)
from meloformer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    learning_rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of a recipe."""

    output: str = "here"
    pedal: Literal["on", "off"] = "on"
    inner: Inner = field(default_factory=Inner)


def test_flags_of_nested_dataclasses_need_no_prefix_and_keep_underscores() -> None:
    flags = parse_flags(Flags, ["--learning_rate", "2", "--pedal", "off"])
    assert (flags.inner.learning_rate, flags.pedal) == (2.0, "off")


def test_the_launchers_local_rank_is_dropped_wherever_it_stands() -> None:
    assert parse_flags(Flags, ["--local_rank=3", "--output", "x"]).output == "x"
    assert parse_flags(Flags, ["--output", "x", "--local_rank=0"]).output == "x"


@pytest.mark.parametrize("arguments", [["--no_such_flag", "1"], ["--pedal", "maybe"]])
def test_an_unknown_flag_or_value_ends_in_one_line_and_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_flags(Flags, arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert arguments[0] in line
    assert not set(line) & set("╭╮╰╯│─")


@dataclass(frozen=True)
class MoreFlags(Flags):
    """Values that may be left out.

    Args:
        output: where to; --bars says how much of it, and --tempo how fast.
    """

    tempo: float | None = None
    bars: int | None = None
    size: Literal["tiny", "base", "large"] | None = None


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What is needed.

    Args:
        midi: the MIDI file.
        data: shards.
    """

    midi: tyro.conf.Positional[Path]
    data: str


def test_what_is_missing_is_said_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        ([], "error: missing: PATH the MIDI file; --data STR shards; all flags: "),
        (["a.mid"], "error: missing: --data STR shards; all flags: "),
    ):
        with pytest.raises(SystemExit):
            parse_flags(Needed, arguments)
        assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--learning_rate", "abc"], "error: --learning_rate: found 'abc', allowed a number; all"),
        (["--learning_rate", "nan"], "error: --learning_rate: found nan, allowed a number"),
        (["--output", "a", "b"], "error: found b, which follows no flag: most flags take one val"),
        (["--tempo", "90bpm"], "error: --tempo: found '90bpm', allowed a number; all flags: "),
        (["--bars", "1.5"], "error: --bars: found '1.5', allowed a whole number; all flags: "),
        (["--size", "giant"], "error: --size: found 'giant', allowed: base, large, tiny; all fla"),
        (["--bars"], "error: --bars: found too few values behind it, allowed: 1; all flags: "),
        (["--outputs", "3"], "error: found --outputs, 3, which is no flag; near it: --output; all"),
        (["--zzz"], "error: found --zzz, which is no flag; all flags: "),
    ],
)
def test_a_wrong_value_is_said_with_what_is_allowed(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_flags(MoreFlags, arguments)
    assert capsys.readouterr().err.startswith(said)


def test_the_first_number_that_is_too_small_is_refused_and_none_that_was_not_given() -> None:
    flags = Namespace(rows=3, steps=None, seed=-1)
    check_at_least(flags, {"rows": 3, "steps": 1})
    with pytest.raises(ConfigError, match="--seed -1: allowed: 0 or more"):
        check_at_least(flags, {"steps": 1, "seed": 0, "rows": 9})


@pytest.mark.parametrize("minutes", [0, -0.5, math.inf, math.nan])
def test_numbers_that_are_not_above_zero_are_refused_and_none_that_was_not_given(minutes) -> None:
    check_above_zero(Namespace(hours=0.1, minutes=None), "hours", "minutes")
    with pytest.raises(ConfigError, match=f"--minutes {minutes:g}: allowed: above 0"):
        check_above_zero(Namespace(hours=0.1, minutes=minutes), "hours", "minutes")


@pytest.mark.parametrize(
    ("found", "is_taken"), [(None, 1), (b"", 1), (b'{"a": 1}', 1), (b"MThd", 0)]
)
def test_a_json_file_is_written_anew_and_no_other_file_is(
    found: bytes | None, is_taken: bool, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if found is not None:
        path.write_bytes(found)
    if is_taken:
        check_json_file(path)
        return
    with pytest.raises(ConfigError, match="found a file that holds no JSON"):
        check_json_file(path)


def test_flags_are_changed_that_differ_from_what_makes_their_default() -> None:
    assert changed_flags(Flags()) == []
    assert changed_flags(Flags(output="x", inner=Inner(learning_rate=1))) == [
        "output",
        "learning_rate",
    ]


def test_what_was_given_stays_and_the_rest_follows_the_device() -> None:
    by_device = {"cuda": {"rows": 6, "steps": 40}, "cpu": {"rows": 2, "steps": 6}}
    flags = Namespace(rows=None, steps=3)
    assert ungiven(flags, by_device, "cuda") == {"rows": 6}
    assert ungiven(flags, by_device, "cpu") == ungiven(flags, by_device, "mps") == {"rows": 2}


def test_a_refusal_is_one_line_on_stderr_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(flags: Flags) -> None:
        raise ConfigError(f"found {flags.output},\n  allowed: there")

    with pytest.raises(SystemExit) as ended:
        run_recipe(refuse, Flags, [])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: found here, allowed: there\n"


def test_the_recipes_status_is_the_exit_code() -> None:
    for status, code in ((None, 0), (1, 1)):
        with pytest.raises(SystemExit) as ended:
            run_recipe(lambda flags, status=status: status, Flags, [])  # type: ignore[misc]
        assert ended.value.code == code


def test_an_error_that_is_not_the_users_keeps_its_traceback() -> None:
    def fail(flags: Flags) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_recipe(fail, Flags, [])


def test_ctrl_c_is_one_line_and_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(flags: Flags) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_recipe(interrupted, Flags, [])
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("stopped by Ctrl-C")


def test_a_place_without_permission_is_named_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(flags: Flags) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "locked/out.mid")

    with pytest.raises(SystemExit) as ended:
        run_recipe(refuse, Flags, [])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: locked/out.mid: Permission denied; allowed: what this user may")
