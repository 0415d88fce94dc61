"""From a shard set to targets: the summaries of every window, piece after piece."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from meloformer.bridge.summarising import (
    MAX_BARS,
    OVERLAP,
    bare_window,
    summaries_of_windows,
)
from meloformer.bridge.targets import TargetWindow
from meloformer.bridge.targets_writer import TargetsWriter, writing_targets
from meloformer.errors import ConfigError
from meloformer.model.injection import INJECTION_LAYER
from meloformer.model.museformer import MuseFormer
from meloformer.shards.manifest import SPLITS
from meloformer.shards.reader import ShardFolder, SplitIndex
from meloformer.tokens import vocabulary
from meloformer.tokens.windows import summary_windows

# Bars of a file, which is what memory holds at a time and what a kill can cost.
BARS_PER_FILE = 1 << 15

# Bars of pieces done since the last call, each counted once however many windows hold it.
OnProgress = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How pieces are cut into windows.

    Args:
        max_bars: most bars of a window, which is what a bridge has queries for.
        overlap: bars that two windows of a longer piece share.
        max_seq_len: most tokens of a window; 0 takes the model's context length.
    """

    max_bars: int = MAX_BARS
    overlap: int = OVERLAP
    max_seq_len: int = 0

    def __post_init__(self) -> None:
        if self.max_bars < 1:
            raise ConfigError(f"--max_bars {self.max_bars}: allowed 1 or more")
        if not 0 <= self.overlap < self.max_bars:
            raise ConfigError(
                f"--overlap {self.overlap}: allowed 0 up to, not with, --max_bars {self.max_bars}"
            )
        if self.max_seq_len < 0:
            raise ConfigError(f"--max_seq_len {self.max_seq_len}: allowed 0 (the model's) or more")

    def for_model(self, model: MuseFormer) -> "WindowSettings":
        """The same with a length in tokens.

        Raises:
            ConfigError: the model has not been trained on rows as long.
        """
        context = model.config.max_seq_len
        if self.max_seq_len > context:
            raise ConfigError(
                f"--max_seq_len {self.max_seq_len}: allowed up to {context}, the length of the "
                "rows that the model was trained on"
            )
        return WindowSettings(
            max_bars=self.max_bars, overlap=self.overlap, max_seq_len=self.max_seq_len or context
        )


class PieceWindows(NamedTuple):
    """Windows of one piece, with their tokens.

    Args:
        windows: in order.
        ids: tokens of each, attributes absent.
        num_bars: of the piece.
        skipped_bars: those that alone are longer than a window may be.
    """

    windows: list[TargetWindow]
    ids: list[np.ndarray]
    num_bars: int
    skipped_bars: int


def check_base(model: MuseFormer, *, allow_closed: bool = False) -> None:
    """Refuse a model that could not use what a bridge would make of its summaries.

    Args:
        model: the base.
        allow_closed: take one that was trained without open summaries.

    Raises:
        ConfigError: no summaries, too few layers, or trained at --open_summary_rate 0.
    """
    config = model.config
    if not config.summaries or config.num_layers <= INJECTION_LAYER:
        has = f"{config.num_layers} layers" if config.summaries else "no summaries"
        raise ConfigError(
            f"a model with {has}: allowed: one with summaries and more than {INJECTION_LAYER} "
            "layers, since summaries enter after that one"
        )
    if not config.open_summary_rate and not allow_closed:
        raise ConfigError(
            "the model was trained at open_summary_rate 0, so it never read the summary of a bar "
            "that it was about to write, and injected ones would harm it; train one with "
            "--open_summary_rate 0.3, or give --allow_closed_base to extract all the same"
        )


def base_facts(model: MuseFormer, folder: Path, fingerprint: str) -> dict[str, Any]:
    """What targets, and bridges trained on them, say of their base."""
    return {
        "fingerprint": fingerprint,
        "folder": str(folder),
        "width": model.config.width,
        "num_layers": model.config.num_layers,
        "max_seq_len": model.config.max_seq_len,
        "open_summary_rate": model.config.open_summary_rate,
        "tokenizer": vocabulary.fingerprint(),
    }


def extract(
    model: MuseFormer,
    base: dict[str, Any],
    shards: ShardFolder,
    output: Path,
    settings: WindowSettings,
    *,
    batch_size: int = 8,
    bars_per_file: int = BARS_PER_FILE,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Write the summaries of every window of a shard set.

    Args:
        model: in evaluation mode.
        base: `base_facts` of it.
        shards: the pieces.
        output: folder to be made; a killed extraction of the same kind is gone on with.
        settings: how pieces are cut.
        batch_size: rows that are computed together; no number depends on it.
        bars_per_file: most bars of a file, unless a single piece has more.
        on_progress: called after each batch.

    Returns:
        The manifest.

    Raises:
        ConfigError: the output is taken, a summary does not fit float16, train holds no window.
    """
    settings = settings.for_model(model)
    said = {
        "base": base,
        "layer": INJECTION_LAYER,
        **asdict(settings),
        "attributes": "absent",
        "shards_manifest_sha256": shards.manifest_sha256,
        "bars_per_file": bars_per_file,
    }
    with writing_targets(output, said) as writer:
        for split in SPLITS:
            index = shards.split(split)
            for pieces in _files(index, settings, bars_per_file):
                if writer.finished(split) is None:
                    _write_file(writer, model, split, pieces, batch_size, on_progress)
                elif on_progress is not None:
                    on_progress(sum(piece.num_bars for piece in pieces))
        return writer.finish()


def windows_of_piece(index: SplitIndex, piece: int, settings: WindowSettings) -> PieceWindows:
    """Cut a piece of a split into windows, all optional attributes absent.

    Args:
        index: the split.
        piece: number in it.
        settings: with a length in tokens.
    """
    ids, starts = index.read(piece), index.bar_starts(piece)
    spans = summary_windows(
        ids,
        starts,
        max_bars=settings.max_bars,
        max_tokens=settings.max_seq_len,
        overlap=settings.overlap,
    )
    key, location = index.key(piece), str(index.facts(piece)["source"])
    covered = np.zeros(len(starts) - 1, dtype=bool)
    for first, last in spans:
        covered[first:last] = True
    return PieceWindows(
        [TargetWindow(key, first, last, location) for first, last in spans],
        [bare_window(ids, starts, first, last) for first, last in spans],
        len(covered),
        int((~covered).sum()),
    )


def _files(
    index: SplitIndex, settings: WindowSettings, bars_per_file: int
) -> Iterator[list[PieceWindows]]:
    """Whole pieces for each file, the same ones at every try."""
    waiting: list[PieceWindows] = []
    num_bars = 0
    for piece in range(index.num_pieces):
        found = windows_of_piece(index, piece, settings)
        bars = sum(window.bars for window in found.windows)
        if num_bars and num_bars + bars > bars_per_file:
            yield waiting
            waiting, num_bars = [], 0
        waiting.append(found)
        num_bars += bars
    if num_bars:
        yield waiting


def _write_file(
    writer: TargetsWriter,
    model: MuseFormer,
    split: str,
    pieces: list[PieceWindows],
    batch_size: int,
    on_progress: OnProgress | None,
) -> None:
    windows = [window for piece in pieces for window in piece.windows]
    # Windows overlap, and some bars stand in none.
    bars_per_bar = sum(piece.num_bars for piece in pieces) / sum(w.bars for w in windows)

    def on_batch(bars: int) -> None:
        if on_progress is not None:
            on_progress(bars * bars_per_bar)

    ids = [window for piece in pieces for window in piece.ids]
    writer.write(
        split,
        windows,
        summaries_of_windows(model, ids, batch_size=batch_size, on_batch=on_batch),
        skipped_bars=sum(piece.skipped_bars for piece in pieces),
    )
