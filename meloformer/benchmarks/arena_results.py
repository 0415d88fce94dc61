"""What the arena found: one line a system, in a table and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from meloformer.benchmarks.bench_tables import percent
from meloformer.evaluation.bar_similarity import BarPairs, chance_error, similarity_error
from meloformer.evaluation.control_intervals import Interval, difference, interval
from meloformer.midi.grid import METRE_STEPS, STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.midi.quantised import QuantisedPiece


@dataclass(frozen=True, eq=False, kw_only=True)
class SeedResult:
    """A system trained with one seed.

    Args:
        learning_rate: the highest.
        steps: optimizer steps.
        notes: trained on, over all epochs.
        targets: likewise.
        seconds: of training.
        piece_nats: (P,) of each held-out piece, all its excerpts.
        written: what it wrote; None is a piece that does not decode.
        writing_seconds: of all of that.
    """

    learning_rate: float
    steps: int
    notes: int
    targets: int
    seconds: float
    piece_nats: np.ndarray
    written: Sequence[QuantisedPiece | None]
    writing_seconds: float


@dataclass(frozen=True, eq=False, kw_only=True)
class SystemResult:
    """A system with all seeds.

    Args:
        num_parameters: trained ones.
        settings: what it is.
        notes_lost: share of the notes of held-out excerpts that do not come back from its tokens.
        bars_changed: share of their bars whose metre or tempo does not.
        seeds: one result each.
    """

    num_parameters: int
    settings: Mapping[str, Any]
    notes_lost: float
    bars_changed: float
    seeds: Sequence[SeedResult]

    def piece_nats_per_note(self, piece_notes: np.ndarray) -> np.ndarray:
        """(P,) nats of a piece over its notes, mean over seeds."""
        return np.mean([seed.piece_nats for seed in self.seeds], axis=0) / piece_notes

    @property
    def written(self) -> list[QuantisedPiece | None]:
        """Of all seeds."""
        return [music for seed in self.seeds for music in seed.written]

    @property
    def decoded(self) -> list[QuantisedPiece]:
        """What decodes and holds a note."""
        return [music for music in self.written if music is not None and music.num_notes]

    @property
    def seconds_per_minute(self) -> float:
        """Of writing, for a minute of music; nan where nothing decodes."""
        written = sum(map(minutes, self.decoded))
        spent = sum(seed.writing_seconds for seed in self.seeds)
        return spent / written if written else np.nan


def minutes(music: QuantisedPiece) -> float:
    """How long a piece takes, up to the end of the last bar in which a note starts."""
    num_bars = int(music.bar.max(initial=-1)) + 1
    quarters = METRE_STEPS[music.bar_metre[:num_bars]] / STEPS_PER_QUARTER
    return float((quarters / TEMPOS_BPM[music.bar_tempo[:num_bars]]).sum())


def num_notes_kept(music: QuantisedPiece, back: QuantisedPiece | None) -> int:
    """Notes that come back in the same bar, with all that they are."""
    return 0 if back is None else len(_notes(music) & _notes(back))


def num_bars_kept(music: QuantisedPiece, back: QuantisedPiece | None) -> int:
    """Bars that come back in the same place with the same metre and tempo."""
    if back is None:
        return 0
    shared = min(music.num_bars, back.num_bars)
    same = music.bar_metre[:shared] == back.bar_metre[:shared]
    same &= music.bar_tempo[:shared] == back.bar_tempo[:shared]
    return int(same.sum())


def _notes(music: QuantisedPiece) -> set[tuple[int, ...]]:
    columns = (
        music.bar,
        music.instrument,
        music.onset_steps,
        music.pitch,
        music.duration_steps,
        music.velocity,
    )
    return set(zip(*(column.tolist() for column in columns), strict=True))


class Report:
    """All systems on the same held-out pieces.

    Args:
        systems: by name; the first one is what the others are held against.
        piece_notes: (P,) notes of each held-out piece.
        reference: beginnings of held-out pieces, as long as what is written.
        num_bars: bars of what is written.
    """

    def __init__(
        self,
        systems: Mapping[str, SystemResult],
        piece_notes: np.ndarray,
        reference: Sequence[QuantisedPiece],
        num_bars: int,
    ) -> None:
        self.systems, self.piece_notes = systems, piece_notes
        distances = max(num_bars - 1, 1)
        pairs = BarPairs.of(reference, distances)
        self.chance = chance_error(pairs)
        self.errors = {
            name: similarity_error(BarPairs.of(result.decoded, distances), pairs)
            for name, result in systems.items()
        }
        per_note = {n: r.piece_nats_per_note(piece_notes) for n, r in systems.items()}
        first = next(iter(per_note.values()))
        self.nats = {name: interval(v, is_share=False) for name, v in per_note.items()}
        self.behind = {name: difference(v, first) for name, v in per_note.items()}

    def decodes(self, name: str) -> Interval:
        """Share of what a system wrote that decodes."""
        written = self.systems[name].written
        is_music = [music is not None and music.num_notes > 0 for music in written]
        return interval(np.array(is_music, float))

    def table(self, title: str) -> Table:
        """For people; brackets hold 95 % intervals over pieces."""
        first = next(iter(self.systems))
        table = Table(title=title, title_justify="left")
        table.add_column("system", no_wrap=True)
        for heading in (
            "parameters",
            "notes seen",
            "steps",
            "nats per note",
            f"less {first}'s",
            "s per minute",
            "decodes",
            "similarity error",
            "notes lost",
        ):
            table.add_column(heading, justify="right")
        for name, result in self.systems.items():
            table.add_row(
                name,
                f"{result.num_parameters:,}",
                f"{np.mean([seed.notes for seed in result.seeds]):,.0f}",
                f"{np.mean([seed.steps for seed in result.seeds]):,.0f}",
                _bracketed(self.nats[name], 3),
                "-" if name == first else _bracketed(self.behind[name], 3, sign=True),
                f"{result.seconds_per_minute:.1f}",
                percent(self.decodes(name).mean),
                _bracketed(self.errors[name], 3),
                percent(result.notes_lost),
            )
        row = ["held-out, by chance", *[""] * 7, _bracketed(self.chance, 3), ""]
        table.add_row(*row)
        return table

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        total = float(self.piece_notes.sum())
        return {
            "held_out": {
                "pieces": len(self.piece_notes),
                "notes": int(total),
                "similarity_error_by_chance": asdict(self.chance),
            },
            "systems": {
                name: {
                    "num_parameters": result.num_parameters,
                    "settings": dict(result.settings),
                    "nats_per_note": asdict(self.nats[name]),
                    "nats_per_note_of_all_notes": float(
                        np.mean([seed.piece_nats.sum() for seed in result.seeds]) / total
                    ),
                    "less_the_first": asdict(self.behind[name]),
                    "seconds_per_generated_minute": result.seconds_per_minute,
                    "decodes": asdict(self.decodes(name)),
                    "similarity_error": asdict(self.errors[name]),
                    "notes_lost": result.notes_lost,
                    "bars_changed": result.bars_changed,
                    "seeds": [
                        {
                            "learning_rate": seed.learning_rate,
                            "steps": seed.steps,
                            "notes": seed.notes,
                            "targets": seed.targets,
                            "seconds": seed.seconds,
                            "nats_per_note_of_all_notes": float(seed.piece_nats.sum() / total),
                            "piece_nats": seed.piece_nats.tolist(),
                            "writing_seconds": seed.writing_seconds,
                            "minutes_written": sum(
                                minutes(m) for m in seed.written if m is not None
                            ),
                        }
                        for seed in result.seeds
                    ],
                }
                for name, result in self.systems.items()
            },
        }


def _bracketed(found: Interval, decimals: int, *, sign: bool = False) -> str:
    if not found.n:
        return "-"
    plus = "+" if sign else ""
    return (
        f"{found.mean:{plus}.{decimals}f} "
        f"[{found.low:{plus}.{decimals}f}, {found.high:{plus}.{decimals}f}]"
    )
