"""Linear probes: what can be read off the summaries of each layer, and off tokens of the same bars.

A probe is a ridge regression from one vector a bar to facts of that bar. It learns on pieces of
train; a fifth of them picks its penalties; it is scored on pieces of valid and test, which the base
has not been trained on either.

Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from meloformer.bridge.extraction import WindowSettings, windows_of_piece
from meloformer.bridge.summarising import RowBatch, row_batches
from meloformer.errors import ConfigError
from meloformer.evaluation.bar_facts import COLUMNS, NUM_COLUMNS, QUESTIONS, bar_facts
from meloformer.evaluation.probe_scores import (
    Score,
    above_chance,
    constant_answers,
    scored,
    value_of,
)
from meloformer.evaluation.ridge import PENALTIES, Sums
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder, SplitIndex
from meloformer.tokens.attributes import read_prefix

StreamName = Literal["tokens", "summaries"]
# Pieces between two that choose penalties.
_CHOOSING_EVERY = 5
# Their windows share rows.
_PIECES_AT_A_TIME = 32


class Stream(NamedTuple):
    """Vectors of bars: `summaries`, or the mean of a bar's `tokens`, after a layer.

    Layer 0 is the embedding, before any layer.
    """

    layer: int
    name: StreamName


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How much is probed.

    Args:
        train_pieces: most pieces that probes learn from, drawn at random.
        test_pieces: most pieces of valid, and of test, that they are scored on.
        seed: of the draw.
    """

    train_pieces: int = 1000
    test_pieces: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train_pieces", "test_pieces"):
            if getattr(self, name) < 2:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed 2 or more")


@dataclass(frozen=True, eq=False)
class Bars:
    """Bars of some pieces.

    Args:
        vectors: (N, D) of each stream.
        facts: (N, C).
        edges: (P + 1,) where the bars of each piece begin; None for a single piece.
    """

    vectors: dict[Stream, np.ndarray]
    facts: np.ndarray
    edges: np.ndarray | None = None

    @property
    def piece(self) -> np.ndarray:
        """(N,) piece of each bar, 0..P - 1."""
        edges = np.array([0, len(self.facts)]) if self.edges is None else self.edges
        return np.repeat(np.arange(len(edges) - 1), np.diff(edges))


@dataclass(frozen=True, kw_only=True)
class ProbeTable:
    """Scores of every stream and of chance.

    Args:
        scores: by stream, then by question.
        chance: by question, of the best answers that look at nothing.
        num_pieces: learned from, scored on.
        num_bars: likewise.
    """

    scores: dict[Stream, dict[str, Score]]
    chance: dict[str, Score]
    num_pieces: tuple[int, int]
    num_bars: tuple[int, int]
    facts: dict[str, Any] = field(default_factory=dict)

    def above_chance(self, stream: Stream) -> float:
        """See `probe_scores.above_chance`."""
        return above_chance(self.scores[stream], self.chance)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""

        def plain(scores: dict[str, Score]) -> dict[str, Any]:
            return {name: asdict(score) for name, score in scores.items()}

        return {
            **self.facts,
            "pieces": {"train": self.num_pieces[0], "test": self.num_pieces[1]},
            "bars": {"train": self.num_bars[0], "test": self.num_bars[1]},
            "chance": plain(self.chance),
            "probes": [
                {
                    "layer": stream.layer,
                    "stream": stream.name,
                    "above_chance": self.above_chance(stream),
                    "scores": plain(scores),
                }
                for stream, scores in self.scores.items()
            ],
        }


def probe(
    model: MuseFormer,
    shards: ShardFolder,
    windows: WindowSettings,
    settings: ProbeSettings,
    *,
    batch_size: int = 8,
    on_pieces: Callable[[int], None] | None = None,
) -> ProbeTable:
    """Probe all layers of a model.

    Args:
        model: in evaluation mode.
        shards: pieces.
        windows: how pieces are cut; no bar is taken twice, so the overlap does not count.
        settings: how many pieces.
        batch_size: rows that are computed together.
        on_pieces: called with the number of pieces done since the last call.

    Raises:
        ConfigError: too few pieces to learn from, or none to be scored on.
    """
    windows = WindowSettings(
        max_bars=windows.max_bars, overlap=0, max_seq_len=windows.max_seq_len
    ).for_model(model)
    learning, choosing, testing = _pieces(shards, settings)

    def bars_of(pieces: Sequence[_Piece]) -> Iterator[Bars]:
        for start in range(0, len(pieces), _PIECES_AT_A_TIME):
            chosen = pieces[start : start + _PIECES_AT_A_TIME]
            yield from _bars_of_pieces(model, chosen, windows, batch_size)
            if on_pieces is not None:
                on_pieces(len(chosen))

    fitted = _sums(bars_of(learning))
    chosen_on = _joined(bars_of(choosing))
    test = _joined(bars_of(testing))
    scores = {}
    all_facts_of_train = fitted.facts + chosen_on.facts.sum(0)
    for stream, sums in fitted.sums.items():
        penalty = _penalties(sums, chosen_on, stream)
        whole = (sums + Sums.of(chosen_on.vectors[stream], chosen_on.facts)).fit()
        answers = np.zeros_like(test.facts)
        for question in QUESTIONS:
            columns = COLUMNS[question.name]
            answers[:, columns] = whole.predict(test.vectors[stream], penalty[question.name])[
                :, columns
            ]
        scores[stream] = {q.name: scored(q, answers, test.facts, test.piece) for q in QUESTIONS}
    num_train = fitted.num_bars + len(chosen_on.facts)
    blind = np.broadcast_to(
        constant_answers((all_facts_of_train / num_train)[None]), test.facts.shape
    )
    return ProbeTable(
        scores=scores,
        chance={q.name: scored(q, blind, test.facts, test.piece) for q in QUESTIONS},
        num_pieces=(len(learning) + len(choosing), len(testing)),
        num_bars=(num_train, len(test.facts)),
    )


def num_pieces(shards: ShardFolder, settings: ProbeSettings) -> int:
    """Pieces that `probe` will read."""
    return sum(map(len, _pieces(shards, settings)))


class _Piece(NamedTuple):
    split: SplitIndex
    number: int


class _Fitted(NamedTuple):
    sums: dict[Stream, Sums]
    facts: np.ndarray
    num_bars: int


def _pieces(
    shards: ShardFolder, settings: ProbeSettings
) -> tuple[list[_Piece], list[_Piece], list[_Piece]]:
    """Pieces to learn from, to choose penalties on, and to be scored on."""
    rng = np.random.default_rng(settings.seed)

    def drawn(split: str, most: int) -> list[_Piece]:
        index = shards.split(split)
        numbers = rng.permutation(index.num_pieces)[:most]
        return [_Piece(index, number) for number in sorted(numbers.tolist())]

    train = drawn("train", settings.train_pieces)
    testing = [piece for split in ("valid", "test") for piece in drawn(split, settings.test_pieces)]
    if len(train) < _CHOOSING_EVERY or not testing:
        raise ConfigError(
            f"found {len(train)} pieces of train and {len(testing)} of valid and test; allowed: "
            f"{_CHOOSING_EVERY} or more to learn from, and some to be scored on; take larger shards"
        )
    choosing = train[::_CHOOSING_EVERY]
    learning = [piece for number, piece in enumerate(train) if number % _CHOOSING_EVERY]
    return learning, choosing, testing


def _bars_of_pieces(
    model: MuseFormer, pieces: Sequence[_Piece], windows: WindowSettings, batch_size: int
) -> Iterator[Bars]:
    """Bars of each piece that has a bar which fits a window."""
    cut = [windows_of_piece(split, number, windows).ids for split, number in pieces]
    ids = [window for of_piece in cut for window in of_piece]
    found: list[dict[Stream, Tensor]] = [{} for _ in ids]
    for rows in row_batches(model, ids, batch_size):
        vectors = vectors_of_bars(model, rows)
        for window, row, first, last in rows.slots:
            found[window] = {stream: x[row, first:last].clone() for stream, x in vectors.items()}
    start = 0
    for (split, number), of_piece in zip(pieces, cut, strict=True):
        own, start = found[start : start + len(of_piece)], start + len(of_piece)
        if own:
            key = read_prefix(split.read(number)).key
            yield Bars(
                {stream: torch.cat([x[stream] for x in own]).numpy() for stream in own[0]},
                np.concatenate([bar_facts(window, key) for window in of_piece]),
            )


def vectors_of_bars(model: MuseFormer, rows: RowBatch) -> dict[Stream, Tensor]:
    """(B, S, D) float32 vectors of every slot, of each stream, on the CPU.

    Tokens are those of the slot's own bar, its bar token with them.
    """
    batch = rows.batch
    layout = batch.layout
    outputs: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: outputs.append(output[:2]))
        for layer in model.layers
    ]
    try:
        with torch.no_grad():
            model(batch.ids_BT, layout, rows.plan)
            embedded_BTD = model.embed(batch.ids_BT, layout.onset_BT, layout.instrument_BT)
    finally:
        for hook in hooks:
            hook.remove()
    is_of_bar_BST = (
        (layout.bar_BS[:, :, None] == layout.bar_BT[:, None, :])
        & (layout.piece_BS[:, :, None] == layout.piece_BT[:, None, :])
        & (layout.piece_BS >= 0)[:, :, None]
    ).float()
    share_BST = is_of_bar_BST / is_of_bar_BST.sum(2, keepdim=True).clamp(min=1)
    found = {Stream(0, "tokens"): share_BST @ embedded_BTD.float()}
    for layer, (x_BTD, s_BSD) in enumerate(outputs, start=1):
        found[Stream(layer, "tokens")] = share_BST @ x_BTD.float()
        found[Stream(layer, "summaries")] = s_BSD.float()
    return {stream: vectors.cpu() for stream, vectors in found.items()}


def _sums(parts: Iterator[Bars]) -> _Fitted:
    sums: dict[Stream, Sums] = {}
    facts, count = np.zeros(NUM_COLUMNS), 0
    for bars in parts:
        for stream, vectors in bars.vectors.items():
            own = Sums.of(vectors, bars.facts)
            sums[stream] = sums[stream] + own if stream in sums else own
        facts, count = facts + bars.facts.sum(0), count + len(bars.facts)
    if not sums:
        raise ConfigError(
            "no bar to learn from: every one is longer than --max_seq_len; raise it, or take a "
            "model of longer rows"
        )
    return _Fitted(sums, facts, count)


def _joined(parts: Iterator[Bars]) -> Bars:
    found = list(parts)
    if not found:
        raise ConfigError(
            "no bar to be scored on: every one is longer than --max_seq_len; raise it, or take a "
            "model of longer rows"
        )
    return Bars(
        {
            stream: np.concatenate([bars.vectors[stream] for bars in found])
            for stream in found[0].vectors
        },
        np.concatenate([bars.facts for bars in found]),
        np.cumsum([0, *(len(bars.facts) for bars in found)]),
    )


def _penalties(sums: Sums, bars: Bars, stream: Stream) -> dict[str, float]:
    """The penalty under which each question is answered best."""
    ridge = sums.fit()
    best: dict[str, tuple[float, float]] = {}
    for penalty in PENALTIES:
        answers = ridge.predict(bars.vectors[stream], penalty)
        for question in QUESTIONS:
            value = value_of(question, answers, bars.facts)
            if value is not None and value > best.get(question.name, (-np.inf,))[0]:
                best[question.name] = (value, penalty)
    return {q.name: best.get(q.name, (0.0, PENALTIES[0]))[1] for q in QUESTIONS}
