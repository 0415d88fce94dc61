"""A piece that is handed out bar by bar while it is written."""

from collections.abc import Callable, Sequence

import numpy as np

from meloformer.generation.generate import Sample, generate_batch
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.hid import decode_bar
from meloformer.tokens.vocabulary import EOS, KIND_OF, Kind

OnBar = Callable[[int, QuantisedPiece], None]


def stream_bars(
    model: MuseFormer,
    sample: Sample,
    sampling: SamplingConfig,
    on_bar: OnBar,
    *,
    stop: Callable[[int], bool] | None = None,
) -> np.ndarray:
    """Sample one piece, and hand out each bar as soon as its last token is drawn.

    Args:
        model: in evaluation mode.
        sample: what it shall be.
        sampling: temperature and cut-offs.
        on_bar: called with the number of each finished bar, from 0, and its music alone: a piece of
            one bar, in which a note may sound on into one that is not written yet.
        stop: see `generate_batch`.

    Returns:
        What `generate_batch` returns for the same sample, to the last token.
    """
    watcher = _BarWatcher(on_bar)
    return generate_batch(model, [sample], sampling, on_step=watcher, stop=stop)[0]


class _BarWatcher:
    """Sees each step of one piece; a bar is finished when the next one begins, or the piece ends.

    Args:
        on_bar: see `stream_bars`.
    """

    def __init__(self, on_bar: OnBar) -> None:
        self._on_bar = on_bar
        self._num_begun = 0

    def __call__(self, rows: Sequence[Sequence[int]]) -> None:
        [ids] = rows
        if not (ids[-1] == EOS or KIND_OF[ids[-1]] == Kind.BAR):
            return
        if self._num_begun:
            bar = self._num_begun - 1
            self._on_bar(bar, decode_bar(np.array(ids, dtype=np.uint16), bar))
        self._num_begun += 1
