"""Sample whole pieces: cached, batched, and under the grammar, so that every one decodes."""

from collections.abc import Callable

import numpy as np
import torch

from meloformer.generation.cache import DecodeCache, StepLabels
from meloformer.generation.controls import NOTHING, ControlConfig
from meloformer.generation.sampling import SamplingConfig, sample_tokens
from meloformer.model.config import MuseFormerConfig
from meloformer.model.injection import Injection
from meloformer.model.masks import num_summaries
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import Attributes
from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.labels import HEADER, PREFIX, token_labels
from meloformer.tokens.vocabulary import EOS, INDEX_OF, KIND_OF, PAD, Kind
from meloformer.tokens.windows import bar_starts


class Labeller:
    """The labels of tokens that come one at a time; agrees with `token_labels` of the whole.

    Args:
        prefix: ids that every row starts with, bars included or not.
        num_rows: B.
    """

    def __init__(self, prefix: np.ndarray, num_rows: int) -> None:
        labels = token_labels(prefix)
        # Rows bar, instrument, index, onset, as in StepLabels.
        fields = (labels.bar, labels.instrument, labels.index, labels.onset)
        self.prefix = np.stack(fields)[:, None, :].repeat(num_rows, axis=1).astype(np.int64)
        self.now = self.prefix[:, :, -1].copy()

    def advance(self, ids_B: np.ndarray) -> np.ndarray:
        """Labels (4, B) of one more token a row."""
        kind_B, index_of_B = KIND_OF[ids_B], INDEX_OF[ids_B]
        bar_B, instrument_B, index_B, onset_B = self.now
        is_bar_B = kind_B == Kind.BAR
        bar_B = bar_B + is_bar_B
        index_B = np.where(is_bar_B, 0, index_B + 1)
        is_instrument_B = (kind_B == Kind.INSTRUMENT) & (bar_B >= 0)
        is_header_B = is_bar_B | (ids_B == EOS)
        instrument_B = np.where(is_instrument_B, 1 + index_of_B, instrument_B)
        instrument_B = np.where(is_header_B, HEADER, instrument_B)
        instrument_B = np.where(bar_B < 0, PREFIX, instrument_B)
        onset_B = np.where(kind_B == Kind.ONSET, index_of_B, onset_B)
        onset_B = np.where(is_header_B | is_instrument_B, 0, onset_B)
        self.now = np.stack([bar_B, instrument_B, index_B, onset_B])
        return self.now


def beyond_training(config: MuseFormerConfig, num_bars: int) -> str | None:
    """A line to print where more bars are wished for than a training row could hold."""
    capacity = num_summaries(config.max_seq_len)
    if num_bars <= capacity:
        return None
    return (
        f"--bars {num_bars}: rows of training held at most {capacity} bars "
        f"(--max_seq_len {config.max_seq_len}); what comes after them is untrained ground"
    )


def generate(
    model: MuseFormer,
    controls: ControlConfig,
    sampling: SamplingConfig,
    *,
    num_samples: int = 1,
    seed: int = 0,
    injection: Injection | None = None,
    told: Attributes = NOTHING,
    on_token: Callable[[int], None] | None = None,
    stop: Callable[[int], bool] | None = None,
) -> list[np.ndarray]:
    """Sample pieces in one batch.

    Args:
        model: in evaluation mode.
        controls: wishes; bars, metre, tempo and instruments are kept by the grammar.
        sampling: temperature and cut-offs.
        num_samples: pieces, B.
        seed: the same seed gives the same pieces on the same device.
        injection: summaries of each piece, or of one row that all pieces share; those behind the
            last bar are left out, since the prefix would read them.
        told: what the prefix says besides the wishes; the grammar does not keep it.
        on_token: called after each step with the number of tokens sampled so far, all rows.
        stop: asked after each step, with the same number, whether to end here.

    Returns:
        One uint16 sequence a piece, from BOS to EOS. A piece that was stopped ends with its last
        finished bar; where it has none, it is the prefix alone.
    """
    generator = torch.Generator().manual_seed(seed)
    prefix = controls.prefix(told).astype(np.int64)
    grammars = [
        GrammarState(
            prefix.tolist(),
            num_bars=controls.num_bars,
            instruments=controls.instrument_indices or None,
            metre=controls.metre_index,
            tempo=controls.tempo_index,
        )
        for _ in range(num_samples)
    ]
    if injection is not None:
        injection = injection.first_bars(controls.num_bars)
        if len(injection.summaries_BSD) == 1:
            injection = injection.repeat(num_samples)
    cache = DecodeCache(model, num_samples, injection)
    labeller = Labeller(prefix, num_samples)
    active_B = np.ones(num_samples, dtype=bool)
    pieces: list[list[int]] = [prefix.tolist() for _ in range(num_samples)]
    allowed_BV = np.zeros((num_samples, model.config.vocab_size), dtype=bool)

    logits_BV = cache.add(
        torch.from_numpy(prefix).to(cache.device).expand(num_samples, -1),
        StepLabels.from_numpy(labeller.prefix, cache.device),
        torch.ones(num_samples, dtype=torch.bool, device=cache.device),
    )
    num_sampled = 0
    while active_B.any():
        # Rows that have ended draw PAD, so that the batch stays whole.
        allowed_BV[:] = False
        allowed_BV[~active_B, PAD] = True
        for row in np.flatnonzero(active_B):
            allowed_BV[row] = grammars[row].allowed()
        ids_B = sample_tokens(logits_BV, torch.from_numpy(allowed_BV), sampling, generator).numpy()
        for row in np.flatnonzero(active_B):
            grammars[row].advance(int(ids_B[row]))
            pieces[row].append(int(ids_B[row]))
            num_sampled += 1
            active_B[row] = not grammars[row].is_finished
        if on_token is not None:
            on_token(num_sampled)
        if not active_B.any() or (stop is not None and stop(num_sampled)):
            break

        labels_4B = labeller.advance(ids_B)
        bar_B = torch.from_numpy(labels_4B[0]).to(cache.device)
        # A bar token says that the bar before it is complete.
        closes_B = active_B & (labels_4B[2] == 0) & (labels_4B[0] > 0)
        rows_R = torch.from_numpy(np.flatnonzero(closes_B)).to(cache.device)
        cache.close_bar(rows_R, bar_B[rows_R] - 1)
        logits_BV = cache.add(
            torch.from_numpy(ids_B).to(cache.device)[:, None],
            StepLabels.from_numpy(labels_4B[:, :, None], cache.device),
            torch.from_numpy(active_B).to(cache.device),
        )
    whole = [np.array(ids, dtype=np.uint16) for ids in pieces]
    return [_finished_bars(ids) if active_B[row] else ids for row, ids in enumerate(whole)]


def _finished_bars(ids: np.ndarray) -> np.ndarray:
    """A sequence without the bar that it breaks off in."""
    starts = bar_starts(ids)
    return ids[: starts[-2]] if len(starts) > 1 else ids
