"""What a learning-rate range test has seen, and the rate that follows from it.

Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3: let the
rate grow from step to step, look where the loss falls fastest and where it turns.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

FEWEST_STEPS = 20
# Share of the test over which losses are averaged, so that its answer does not hang on its length.
_AVERAGED_SHARE = 1 / 20
# A loss has turned when it has lost this share of what it had gained, and more than noise explains.
_LOST_SHARE, _NOISE_SHARE = 0.2, 0.05
# The rate at which it turned is far too high for more than a moment; this is taken off.
SAFETY_FACTOR = 4.0
_TABLE_ROWS, _BAR_COLUMNS = 20, 40
_PNG_INCHES, _DOTS_PER_INCH = (8.0, 4.5), 120


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A learning rate, and what it rests on.

    Args:
        learning_rate: the lower of the steepest rate and a part of the one where the loss turned.
        steepest: rate at which the loss fell fastest for a factor in the rate.
        turned: rate at which the smoothed loss was lowest; None where it did not rise after.
    """

    learning_rate: float
    steepest: float
    turned: float | None

    def line(self) -> str:
        """What is suggested and why."""
        steepest = f"the loss fell fastest at {self.steepest:.1e}"
        if self.turned is None:
            return (
                f"suggested: --learning_rate {self.learning_rate:.1e}: {steepest}; it did not rise "
                "again, so that how far this is below trouble is not known: raise --highest to see"
            )
        return (
            f"suggested: --learning_rate {self.learning_rate:.1e}, the lower of two: {steepest}; "
            f"it turned at {self.turned:.1e}, of which 1/{SAFETY_FACTOR:g} is "
            f"{self.turned / SAFETY_FACTOR:.1e}"
        )


@dataclass(frozen=True, kw_only=True)
class RateCurve:
    """Losses while the learning rate grew by the same factor from step to step.

    Args:
        num_steps: that the test would take to its end.
        rates: of each step that was done.
        losses: nats per target of each step, before its update.
    """

    num_steps: int
    rates: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()

    def after(self, rate: float, loss: float) -> "RateCurve":
        """The curve with one more step."""
        return RateCurve(
            num_steps=self.num_steps, rates=(*self.rates, rate), losses=(*self.losses, loss)
        )

    @cached_property
    def smoothed(self) -> np.ndarray:
        """(N,) moving average of the losses up to one that is not finite; not drawn to 0 at first.

        Source: Kingma & Ba 2015 (Adam), section 3: the correction of the bias.

        >>> RateCurve(num_steps=100, rates=(1.0, 2.0), losses=(3.0, 3.0)).smoothed.round(6)
        array([3., 3.])
        """
        kept = 1 - 1 / self._window
        average, smoothed = 0.0, []
        for count, loss in enumerate(itertools.takewhile(math.isfinite, self.losses), start=1):
            average = kept * average + (1 - kept) * loss
            smoothed.append(average / (1 - kept**count))
        return np.array(smoothed)

    @property
    def _window(self) -> int:
        """Steps that are averaged over, or to either side of one whose slope is asked for."""
        return max(round(self.num_steps * _AVERAGED_SHARE), 1)

    @property
    def has_turned(self) -> bool:
        """Whether the loss has risen again, clearly: what comes at higher rates tells nothing."""
        if len(self.smoothed) < len(self.losses):
            return True
        # The first averages are of too few losses to be held against later ones.
        settled = self.smoothed[self._window :]
        if not len(settled):
            return False
        first, lowest, last = settled[0], settled.min(), settled[-1]
        return bool(last > lowest + max(_LOST_SHARE * (first - lowest), _NOISE_SHARE * first))

    def suggest(self) -> Suggestion | None:
        """The rate to train with; None where the loss never fell clearly."""
        smoothed = self.smoothed
        window = self._window
        if len(smoothed) <= 2 * window or smoothed.min() > (1 - _NOISE_SHARE) * smoothed[0]:
            return None
        turn = int(smoothed.argmin())
        # A straight line through the losses around each step: no lag, unlike the moving average.
        places = np.arange(-window, window + 1)
        finite = np.array(self.losses[: len(smoothed)])
        around = np.lib.stride_tricks.sliding_window_view(finite, 2 * window + 1)
        slopes = around[: max(turn - window, 0) + 1] @ places
        steepest = self.rates[window + int(slopes.argmin())]
        if not self.has_turned:
            return Suggestion(learning_rate=steepest, steepest=steepest, turned=None)
        turned = self.rates[turn]
        rate = min(steepest, turned / SAFETY_FACTOR)
        return Suggestion(learning_rate=rate, steepest=steepest, turned=turned)

    def table(self, title: str) -> Table:
        """Some of the steps, with a bar for the smoothed loss."""
        table = Table(title=title, title_justify="left")
        for name in ("learning rate", "loss", "smoothed"):
            table.add_column(name, justify="right")
        table.add_column("", no_wrap=True)
        smoothed, count = self.smoothed, len(self.smoothed)
        lowest, highest = smoothed.min(), smoothed.max()
        for place in sorted({round(p) for p in np.linspace(0, count - 1, _TABLE_ROWS)}):
            share = (smoothed[place] - lowest) / max(highest - lowest, 1e-12)
            table.add_row(
                f"{self.rates[place]:.2e}",
                f"{self.losses[place]:.3f}",
                f"{smoothed[place]:.3f}",
                "█" * (1 + round(share * (_BAR_COLUMNS - 1))),
            )
        return table

    def to_json(self) -> dict[str, Any]:
        """Plain data: the curve and the rates that follow from it."""
        found = self.suggest()
        return {
            "learning_rate": found.learning_rate if found else None,
            "steepest": found.steepest if found else None,
            "turned": found.turned if found else None,
            "num_steps": self.num_steps,
            "rates": list(self.rates),
            "losses": [loss if math.isfinite(loss) else None for loss in self.losses],
            "smoothed": self.smoothed.tolist(),
        }


def save_chart(curve: RateCurve, path: Path, title: str) -> None:
    """Draw the losses against the rate.

    Args:
        curve: what was measured.
        path: .png to write.
        title: a line above the picture.
    """
    # Figure and canvas without pyplot: no global state, no window, safe in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_PNG_INCHES, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    axes.plot(curve.rates, curve.losses, color="0.75", linewidth=0.8, label="loss of each step")
    smoothed = curve.smoothed
    axes.plot(curve.rates[: len(smoothed)], smoothed, linewidth=1.6, label="smoothed")
    if found := curve.suggest():
        marks = {"suggested": found.learning_rate, "steepest": found.steepest}
        if found.turned is not None:
            marks["turned"] = found.turned
        for style, (name, rate) in zip((("-"), ("--"), (":")), marks.items(), strict=False):
            label = f"{name} {rate:.1e}"
            axes.axvline(rate, color="0.3", linestyle=style, linewidth=0.9, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, nats per token")
    axes.grid(color="0.9", linewidth=0.6)
    axes.legend(fontsize="small")
    axes.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=_DOTS_PER_INCH)
