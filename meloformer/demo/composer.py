"""The model and what steers it, loaded once; each call writes one piece, or bars of one."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from meloformer.bridge.base_folder import find_player
from meloformer.bridge.bridges import LoadedBridge, load_bridge
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge.text_to_summaries import encoder_of
from meloformer.demo.border import PageError
from meloformer.demo.settings import PageConfig
from meloformer.demo.wishes import Change, Wish
from meloformer.generation.controls import ControlConfig
from meloformer.generation.editing import continue_piece, rewrite_bars
from meloformer.generation.generate import samples_of
from meloformer.generation.hole_writing import Stop, StoppedError
from meloformer.generation.injecting import Injecting
from meloformer.generation.notices import Say
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.steering import Section, parse_texts
from meloformer.generation.streaming import OnBar, stream_bars
from meloformer.generation.text import (
    Order,
    TextConfig,
    check_reads_summaries,
    order_of_sections,
)
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.device import choose_device
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import load_model, model_fingerprint
from meloformer.tokens.hid import decode
from meloformer.tokens.windows import bar_starts

# A model that was hardly trained may fill a bar without end.
_MOST_TOKENS_A_BAR = 4000


@dataclass(frozen=True, kw_only=True)
class Guide:
    """What turns texts into summaries.

    Args:
        bridge: of the model.
        encoder: of the bridge.
        injecting: what the summaries do.
    """

    bridge: LoadedBridge
    encoder: TextEncoder
    injecting: Injecting


class Composer:
    """Writes music; one piece at a time.

    Args:
        model: in evaluation mode.
        guide: None without a bridge.
        max_bars: of a piece.
        max_seconds: of writing one.
    """

    def __init__(
        self, model: MuseFormer, guide: Guide | None, *, max_bars: int, max_seconds: float
    ) -> None:
        self.model, self.guide = model, guide
        self._max_bars, self._max_seconds = max_bars, max_seconds

    def write(
        self,
        wish: Wish,
        on_start: Callable[[int], None],
        on_bar: OnBar,
        is_over: Callable[[], bool],
    ) -> QuantisedPiece:
        """A new piece.

        Args:
            wish: what it shall be.
            on_start: called once with the number of its bars.
            on_bar: called with each finished bar.
            is_over: asked after each token whether to end with the last finished bar.

        Raises:
            MeloFormerError: a wish that cannot be fulfilled.
        """
        order = self._order(wish)
        num_bars = order.controls.num_bars
        if num_bars > self._max_bars:
            raise PageError(
                "too_many_bars",
                f"{num_bars} bars: allowed: up to {self._max_bars}",
                most=self._max_bars,
            )
        on_start(num_bars)
        [sample] = samples_of(order.controls, order.told, order.injection, seed=wish.seed)
        stop = self._end_of(num_bars, is_over)
        ids = stream_bars(self.model, sample, wish.sampling, on_bar, stop=stop)
        piece = decode(ids) if len(bar_starts(ids)) > 1 else None
        if piece is None or not piece.num_notes:
            raise PageError(
                "stopped_early",
                "the piece: stopped before a finished bar had a note; nothing to keep",
            )
        return piece

    def change(
        self, change: Change, piece: QuantisedPiece, say: Say, is_over: Callable[[], bool]
    ) -> QuantisedPiece:
        """A piece with some of its bars written anew, or with more of them behind its end.

        Args:
            change: which, and who plays there; from the piece's end on they are new ones.
            piece: what its file holds; `Change.check_bars` knows its bars.
            say: called with each notice on what the model could not read.
            is_over: asked after each token whether to leave it.

        Raises:
            MeloFormerError: bars that cannot be written, or that were not in time.
        """
        first, last, end = change.first, change.last, piece.num_bars
        stop = self._end_of(last - first, is_over)
        try:
            if first == end:
                return continue_piece(
                    self.model, piece, end, last - end, change.sampling,
                    seed=change.seed, instruments=change.instruments, stop=stop, say=say,
                )  # fmt: skip
            return rewrite_bars(
                self.model, piece, first, last, change.sampling,
                seed=change.seed, instruments=change.instruments, stop=stop, say=say,
            )  # fmt: skip
        except StoppedError as error:
            raise PageError(
                "not_rewritten",
                f"bars {first + 1} to {last}: stopped, or not written within "
                f"{self._max_seconds:g} seconds; the piece is as it was",
                most=self._max_seconds,
            ) from error

    def _end_of(self, num_bars: int, is_over: Callable[[], bool]) -> Stop:
        """What ends the writing of some bars that begins now, before its time."""
        end = time.monotonic() + self._max_seconds
        return lambda num_tokens: (
            num_tokens > num_bars * _MOST_TOKENS_A_BAR or time.monotonic() > end or is_over()
        )

    def _order(self, wish: Wish) -> Order:
        if not wish.text:
            return Order(title=wish.controls.describe(), controls=wish.controls)
        if self.guide is None:
            raise PageError(
                "no_bridge", "text: found no bridge; allowed: with --bridge runs/<name>"
            )
        is_strict = wish.strict and self.guide.bridge.heads is not None
        config = TextConfig(text=(wish.text,), bridge=self.guide.bridge.folder, strict=is_strict)
        return order_of_sections(
            config,
            self.guide.injecting,
            wish.controls,
            self.guide.bridge,
            self.guide.encoder,
            _sections(wish.text, wish.controls.bars),
            [wish.seed],
        )

    def warm_up(self) -> None:
        """Write a bar for nobody: the first one takes what later ones find done."""
        wish = Wish(
            controls=ControlConfig(bars=1), text="", strict=False, sampling=SamplingConfig(), seed=0
        )
        budget = iter(range(64))
        with suppress(PageError):  # of a bar that is not finished
            self.write(wish, lambda _: None, lambda *_: None, lambda: next(budget, None) is None)


def _sections(text: str, num_bars: int | None) -> list[Section]:
    """Lines that each say their bars are sections of a piece; all others are one text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pieces = parse_texts(lines, num_bars)
    return pieces[0] if len(pieces) == 1 else parse_texts([" ".join(lines)], num_bars)[0]


def load_composer(config: PageConfig, tell: Callable[[str], None] = lambda _: None) -> Composer:
    """Load the model, and the bridge where one is named.

    Args:
        config: which.
        tell: hears which model it is where nobody named one.

    Raises:
        MeloFormerError: something is missing, damaged, or made for another model.
    """
    folder, which = find_player(config.checkpoint, config.weights)
    if which:
        tell(which)
    device = choose_device(config.device)
    model = load_model(folder, device)
    guide = None
    if config.bridge is not None:
        check_reads_summaries(model)
        fingerprint = model_fingerprint(folder)
        bridge = load_bridge(config.bridge, device, config.bridge_weights)
        bridge.check_base(fingerprint)
        guide = Guide(
            bridge=bridge,
            encoder=encoder_of(bridge, config.text_encoder, device),
            injecting=config.injecting.load(fingerprint, device, bridge),
        )
    limits = config.limits
    return Composer(model, guide, max_bars=limits.max_bars, max_seconds=limits.max_seconds)
