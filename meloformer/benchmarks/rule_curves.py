"""Learning curves of attention rules, laid beside each other at equal steps and equal seconds."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

_PNG_INCHES, _DOTS_PER_INCH = (11.0, 4.2), 120


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Validations of one candidate with one seed, in the order in which they were taken.

    Args:
        steps: optimizer steps done before each; the first is 0.
        seconds: training clock, validation and data left out.
        nats_per_note: see `training.nats.Nats`.
    """

    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    nats_per_note: tuple[float, ...]

    def after(self, step: int, seconds: float, nats_per_note: float) -> "Curve":
        """The curve with one more validation."""
        return Curve(
            steps=(*self.steps, step),
            seconds=(*self.seconds, seconds),
            nats_per_note=(*self.nats_per_note, nats_per_note),
        )

    def at_step(self, step: float) -> float:
        """Nats per note after so many steps, on a straight line between validations."""
        return float(np.interp(step, self.steps, self.nats_per_note))

    def at_seconds(self, seconds: float) -> float:
        """Nats per note after so many seconds of training, likewise."""
        return float(np.interp(seconds, self.seconds, self.nats_per_note))


EMPTY_CURVE = Curve(steps=(), seconds=(), nats_per_note=())


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds and standard deviation between them; None with one seed."""

    mean: float
    spread: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Of one value a seed.

        >>> Estimate.of([1.0, 3.0])
        Estimate(mean=2.0, spread=1.4142135623730951)
        >>> Estimate.of([1.0])
        Estimate(mean=1.0, spread=None)
        """
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), spread)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.spread is None else f" ± {self.spread:.3f}")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one candidate stands.

    Args:
        name: of the candidate.
        at_equal_steps: nats per note after the steps that all have done.
        at_equal_seconds: nats per note at the moment when the fastest had done them.
        behind: nats per note behind the best at equal seconds, seed by seed: seeds share rows and
            first weights, so a difference between candidates varies less than either.
        steps_at_equal_seconds: steps done by then, mean over seeds.
        tokens_per_second: targets over the training clock, mean over seeds.
    """

    name: str
    at_equal_steps: Estimate
    at_equal_seconds: Estimate
    behind: Estimate
    steps_at_equal_seconds: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Curves of all candidates and seeds up to some step.

    Args:
        curves: by candidate, one a seed, all validated at the same steps.
        targets: tokens in the loss up to the last step, one a seed.
    """

    curves: Mapping[str, tuple[Curve, ...]]
    targets: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        """Steps that every candidate has done."""
        return next(iter(self.curves.values()))[0].steps[-1]

    @property
    def equal_seconds(self) -> float:
        """The longest time for which every curve is known: that of the fastest candidate."""
        return min(curve.seconds[-1] for curves in self.curves.values() for curve in curves)

    def standings(self) -> list[Standing]:
        """All candidates, the best at equal seconds first."""
        seconds = self.equal_seconds
        timed = {name: [c.at_seconds(seconds) for c in cs] for name, cs in self.curves.items()}
        order = sorted(timed, key=lambda name: float(np.mean(timed[name])))
        best = timed[order[0]]
        return [
            Standing(
                name=name,
                at_equal_steps=Estimate.of([c.at_step(self.num_steps) for c in self.curves[name]]),
                at_equal_seconds=Estimate.of(timed[name]),
                behind=Estimate.of([a - b for a, b in zip(timed[name], best, strict=True)]),
                steps_at_equal_seconds=float(
                    np.mean([np.interp(seconds, c.seconds, c.steps) for c in self.curves[name]])
                ),
                tokens_per_second=float(
                    np.mean(
                        [
                            targets / max(curve.seconds[-1], 1e-9)
                            for targets, curve in zip(self.targets, self.curves[name], strict=True)
                        ]
                    )
                ),
            )
            for name in order
        ]

    def table(self, title: str) -> Table:
        """For people."""
        table = Table(title=title, title_justify="left")
        table.add_column("nats per note", no_wrap=True)
        for name in (
            f"{self.num_steps:,} steps",
            f"{self.equal_seconds:,.0f} s",
            "behind",
            "steps then",
            "tokens/s",
        ):
            table.add_column(name, justify="right")
        for row in self.standings():
            table.add_row(
                row.name,
                str(row.at_equal_steps),
                str(row.at_equal_seconds),
                str(row.behind),
                f"{row.steps_at_equal_seconds:,.0f}",
                f"{row.tokens_per_second:,.0f}",
            )
        return table

    def verdict(self, default: str, references: Sequence[str] = ()) -> str:
        """Which rule wins at equal seconds, and what that means for the default.

        Args:
            default: name of the rule that models take.
            references: candidates that are no rules and cannot win.
        """
        standings = self.standings()
        rows = [row for row in standings if row.name not in references]
        best = rows[0]
        line = f"at equal seconds {best.name} wins: {best.at_equal_seconds} nats per note"
        ahead = itertools.takewhile(lambda row: row is not best, standings)
        line += "".join(f"; {row.name}, no rule, is ahead: {row.at_equal_seconds}" for row in ahead)
        behind = {row.name: row for row in rows}.get(default)
        if best.name == default:
            second = f"; next is {rows[1].name} with {rows[1].at_equal_seconds}" if rows[1:] else ""
            return f"{line}{second}; it is the default"
        if behind is None:
            return f"{line}; the default, {default}, was not among them"
        lead = Estimate.of(
            [
                a.at_seconds(self.equal_seconds) - b.at_seconds(self.equal_seconds)
                for a, b in zip(self.curves[default], self.curves[best.name], strict=True)
            ]
        )
        is_clear = lead.spread is not None and lead.mean > 2 * lead.spread
        said = "more than twice" if is_clear else "less than twice"
        said = "one seed: no spread" if lead.spread is None else f"{said} the spread over seeds"
        return f"{line}; the default, {default}, is {lead} behind ({said})"

    def to_json(self) -> dict[str, Any]:
        """Plain data: curves and standings."""
        return {
            "num_steps": self.num_steps,
            "equal_seconds": self.equal_seconds,
            "targets": list(self.targets),
            "standings": [asdict(row) for row in self.standings()],
            "curves": {name: [asdict(c) for c in curves] for name, curves in self.curves.items()},
        }


def save_chart(comparison: Comparison, path: Path, title: str) -> None:
    """Draw validation loss against steps and against seconds, mean over seeds.

    Args:
        comparison: what was measured.
        path: .png to write.
        title: a line above the picture.
    """
    # Figure and canvas without pyplot: no global state, no window, safe in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_PNG_INCHES, layout="constrained")
    by_step, by_second = FigureCanvasAgg(figure).figure.subplots(1, 2, sharey=True)
    for row in comparison.standings():
        # The untrained model is so far off that it would flatten all that follows.
        curves = comparison.curves[row.name]
        nats = np.mean([curve.nats_per_note[1:] for curve in curves], axis=0)
        style = {"label": row.name, "linewidth": 1.4, "marker": ".", "markersize": 3}
        by_step.plot(curves[0].steps[1:], nats, **style)
        by_second.plot(np.mean([curve.seconds[1:] for curve in curves], axis=0), nats, **style)
    by_second.axvline(comparison.equal_seconds, color="0.7", linewidth=0.8, zorder=0)
    by_step.set_xlabel("optimizer steps")
    by_step.set_ylabel("validation, nats per note")
    by_second.set_xlabel("seconds of training")
    for axes in (by_step, by_second):
        axes.grid(color="0.9", linewidth=0.6)
    by_second.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=_DOTS_PER_INCH)
