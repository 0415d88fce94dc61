"""What the page asks for, read from JSON: every field by name, every value checked."""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeGuard, TypeVar

from meloformer.demo.border import PageError
from meloformer.errors import GenerationError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.spelling import instrument_index
from meloformer.midi.grid import NUM_INSTRUMENTS

MAX_TEXT = 2000  # characters
# What a page's numbers hold exactly.
_MAX_SEED = 2**53 - 1
_MAX_TEMPERATURE = 4.0
# Far beyond any piece: the piece itself says how many it has.
_MOST_BARS = 1_000_000

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A new piece.

    Args:
        controls: wishes of the user's own.
        text: what it is to be like; "" for none.
        strict: keep by force what the text says.
        sampling: how bold the choice of a token is.
        seed: of the draws.
    """

    controls: ControlConfig
    text: str
    strict: bool
    sampling: SamplingConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """Bars of a piece that is there, to be written anew, or behind its end.

    Args:
        midi: the piece, as a file.
        first: first bar to be written, from 0.
        last: one past the last of them.
        sampling: how bold the choice of a token is.
        seed: of the draws.
        instruments: only what these play is written, 0 drums, 1 + program otherwise; None: what
            all instruments of the piece play.
    """

    midi: bytes
    first: int
    last: int
    sampling: SamplingConfig
    seed: int
    instruments: tuple[int, ...] | None = None

    def check_bars(self, num_bars: int) -> None:
        """Refuse bars that the piece does not have and that do not go on from its end either.

        Args:
            num_bars: of the piece.

        Raises:
            PageError: such bars.
        """
        if self.first > num_bars or self.first < num_bars < self.last:
            raise PageError(
                "no_such_bars",
                f"bars {self.first + 1} to {self.last}: allowed: some of the piece's {num_bars}, "
                "or new ones that begin right behind them",
                most=num_bars,
            )


class Fields:
    """The fields of an object, each asked for once; what nobody asks for is refused.

    Args:
        found: the object.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = dict(found)

    def take(self, name: str, allowed: str, read: Callable[[Any], Value | None]) -> Value | None:
        """A field's value; None where it is absent or null.

        Args:
            name: of the field.
            allowed: in words.
            read: from JSON; None where that is not allowed.
        """
        value = self._found.pop(name, None)
        if value is None:
            return None
        result = read(value)
        if result is None:
            shown = str(value)
            shown = shown if len(shown) <= 40 else shown[:39] + "…"
            raise PageError("bad_field", f"{name}: found {shown}; allowed: {allowed}", field=name)
        return result

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number."""
        return self.take(
            name,
            f"a whole number from {least} to {most}",
            lambda value: value if type(value) is int and least <= value <= most else None,
        )

    def number(self, name: str, least: float, most: float) -> float | None:
        """Any number."""

        def read(value: Any) -> float | None:
            # Compared before it is made a float, which the largest whole numbers cannot be.
            is_number = type(value) in (int, float) and least <= value <= most
            return float(value) if is_number else None

        return self.take(name, f"a number from {least:g} to {most:g}", read)

    def text(self, name: str, longest: int) -> str | None:
        """Words."""
        return self.take(
            name,
            f"up to {longest} characters",
            lambda value: value if _is_text(value) and len(value) <= longest else None,
        )

    def yes_or_no(self, name: str) -> bool | None:
        """A choice."""
        return self.take(
            name, "true or false", lambda value: value if isinstance(value, bool) else None
        )

    def names(self, name: str, most: int) -> tuple[str, ...]:
        """A list of short names."""
        return self.take(name, f"up to {most} names", lambda value: _short_names(value, most)) or ()

    def instruments(self, name: str) -> tuple[int, ...] | None:
        """Some instruments of the grid, ascending."""

        def read(value: Any) -> tuple[int, ...] | None:
            names = _short_names(value, NUM_INSTRUMENTS) or ()
            try:
                # An empty list would be nothing to write: who wants all leaves the field out.
                return tuple(sorted({instrument_index(name, one) for one in names})) or None
            except GenerationError:
                return None

        return self.take(name, "one or more of 0 to 127 (programs) and drums", read)

    def end(self) -> None:
        """Refuse what is left.

        Raises:
            PageError: there is something.
        """
        if self._found:
            name = str(next(iter(self._found)))[:40]
            raise PageError(
                "bad_field", f"{name}: found an unknown field; allowed: none", field=name
            )


def read_wish(found: Mapping[str, Any], max_bars: int) -> Wish:
    """A wish for a new piece.

    Raises:
        MeloFormerError: a value that is not allowed.
    """
    fields = Fields(found)
    controls = ControlConfig(
        bars=fields.whole("bars", 1, max_bars),
        tempo=fields.number("tempo", 1, 1000),
        time_signature=fields.text("time_signature", 8),
        key=fields.text("key", 16),
        instruments=fields.names("instruments", NUM_INSTRUMENTS),
    )
    wish = Wish(
        controls=controls,
        text=(fields.text("text", MAX_TEXT) or "").strip(),
        strict=fields.yes_or_no("strict") or False,
        sampling=_sampling(fields),
        seed=fields.whole("seed", 0, _MAX_SEED) or 0,
    )
    fields.end()
    return wish


def read_change(found: Mapping[str, Any], max_bars: int, max_bytes: int) -> Change:
    """A wish for some bars of a piece.

    Args:
        found: the object; its bars are counted from 0, `last` is one past the last.
        max_bars: most bars to be written.
        max_bytes: of the piece's file.

    Raises:
        MeloFormerError: a value that is not allowed.
    """
    fields = Fields(found)
    midi = fields.take("midi", "a file in base64", _from_base64)
    first = fields.whole("first", 0, _MOST_BARS)
    last = fields.whole("last", 1, _MOST_BARS)
    if midi is None or first is None or last is None:
        raise PageError(
            "bad_request", "the request: found no midi, first or last; allowed: all three"
        )
    if len(midi) > max_bytes:
        raise PageError(
            "too_large",
            f"the piece: found a file of {len(midi)} bytes; allowed: up to {max_bytes}",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            found=len(midi),
            most=max_bytes,
        )
    if last <= first:
        raise PageError(
            "bad_field", f"last: found {last}; allowed: above first, {first}", field="last"
        )
    if last - first > max_bars:
        raise PageError(
            "too_many_bars",
            f"{last - first} bars: allowed: up to {max_bars} at once",
            most=max_bars,
        )
    change = Change(
        midi=midi,
        first=first,
        last=last,
        sampling=_sampling(fields),
        seed=fields.whole("seed", 0, _MAX_SEED) or 0,
        instruments=fields.instruments("instruments"),
    )
    fields.end()
    return change


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether it is a string, and no half of a character is in it, as JSON may have them."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _short_names(value: Any, most: int) -> tuple[str, ...] | None:
    if not isinstance(value, list) or len(value) > most:
        return None
    are_names = all(isinstance(one, str) and len(one) <= 8 for one in value)
    return tuple(value) if are_names else None


def _from_base64(value: Any) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode(value, validate=True) or None
    except (binascii.Error, ValueError):
        return None


def _sampling(fields: Fields) -> SamplingConfig:
    temperature = fields.number("temperature", 0, _MAX_TEMPERATURE)
    return SamplingConfig() if temperature is None else SamplingConfig(temperature=temperature)
