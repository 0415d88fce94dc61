"""Sample whole pieces: cached, batched, and under the grammar, so that every one decodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from meloformer.bridge.flow import row_seed
from meloformer.errors import ConfigError
from meloformer.generation.cache import DecodeCache
from meloformer.generation.controls import NOTHING, ControlConfig
from meloformer.generation.decode_graphs import DecodeGraphs
from meloformer.generation.labeller import Labeller
from meloformer.generation.moved_mass import move_mass
from meloformer.generation.piece_mask import PieceMask
from meloformer.generation.rows import Row
from meloformer.generation.sampling import SamplingConfig, sample_tokens
from meloformer.generation.sliding import Context
from meloformer.model.config import MuseFormerConfig
from meloformer.model.injection import Injection, join_rows
from meloformer.model.masks import num_summaries
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import Attributes

# Keeps the seeds of candidates apart from those of pieces.
_CANDIDATE = 1
# Below it rows that have ended are left out of the batch, which costs a copy of the cache.
_LEAST_ACTIVE_SHARE = 0.75


def beyond_training(config: MuseFormerConfig, num_bars: int) -> str | None:
    """A line to print where more bars are wished for than a training row could hold."""
    capacity = num_summaries(config.max_seq_len)
    if num_bars <= capacity:
        return None
    return (
        f"--bars {num_bars}: rows of training held at most {capacity} bars "
        f"(--max_seq_len {config.max_seq_len}); what comes after them is untrained ground; "
        "--endless slides over windows of that size"
    )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One piece to be sampled.

    Args:
        controls: wishes; the grammar keeps what `ControlConfig.wishes` holds.
        told: what the prefix says besides the wishes; the grammar does not keep it.
        injection: one row of summaries; those behind the last bar are left out, since the prefix
            would read them.
        seed: of its draws.
    """

    controls: ControlConfig
    told: Attributes = NOTHING
    injection: Injection | None = None
    seed: int = 0


def generate(
    model: MuseFormer,
    controls: ControlConfig,
    sampling: SamplingConfig,
    *,
    num_samples: int = 1,
    seed: int = 0,
    injection: Injection | None = None,
    told: Attributes = NOTHING,
    endless: bool = False,
    graphs: DecodeGraphs | None = None,
    on_token: Callable[[int], None] | None = None,
    stop: Callable[[int], bool] | None = None,
) -> list[np.ndarray]:
    """Sample pieces of one kind in one batch.

    Args:
        model: in evaluation mode.
        controls: see `Sample`.
        sampling: temperature and cut-offs.
        num_samples: pieces, B.
        seed: of the first piece; the others' seeds follow from it, so that more samples leave the
            first ones as they were.
        injection: summaries of each piece, or of one row that all pieces share.
        told: see `Sample`.
        endless: see `generate_batch`.
        graphs: see `generate_batch`.
        on_token: see `generate_batch`.
        stop: see `generate_batch`.

    Returns:
        See `generate_batch`.
    """
    samples = samples_of(controls, told, injection, num_samples=num_samples, seed=seed)
    return generate_batch(
        model, samples, sampling, endless=endless, graphs=graphs, on_token=on_token, stop=stop
    )


def samples_of(
    controls: ControlConfig,
    told: Attributes = NOTHING,
    injection: Injection | None = None,
    *,
    num_samples: int = 1,
    seed: int = 0,
) -> list[Sample]:
    """Several pieces of one kind; see `generate`."""
    rows: Sequence[Injection | None] = [None] if injection is None else injection.rows()
    assert len(rows) in (1, num_samples), "one row of summaries a piece, or one for all"
    return [
        Sample(
            controls=controls,
            told=told,
            injection=rows[number % len(rows)],
            seed=row_seed(seed, number) if number else seed,
        )
        for number in range(num_samples)
    ]


def generate_batch(
    model: MuseFormer,
    samples: Sequence[Sample],
    sampling: SamplingConfig,
    *,
    endless: bool = False,
    graphs: DecodeGraphs | None = None,
    on_token: Callable[[int], None] | None = None,
    on_step: Callable[[Sequence[Sequence[int]]], None] | None = None,
    stop: Callable[[int], bool] | None = None,
) -> list[np.ndarray]:
    """Sample pieces of any kinds side by side; none depends on those beside it but by rounding.

    Args:
        model: in evaluation mode.
        samples: the pieces, B; their summaries enter in one way.
        sampling: temperature and cut-offs.
        endless: a row that has read as much as a row of training holds goes on from a window of
            it, see generation/sliding.py; else it reads on, beyond what the model was trained on.
        graphs: of the model, from one batch to the next, to decode compiled: the same pieces, but
            for rounding.
        on_token: called after each step with the number of tokens sampled so far, all rows.
        on_step: called after each step with the ids of each piece so far, to be read at once.
        stop: asked after each step, with the same number, whether to end here.

    Returns:
        One uint16 sequence a piece, from BOS to EOS. A piece that was stopped ends with its last
        finished bar; where it has none, it is the prefix alone.

    Raises:
        ConfigError: the best of several pieces, where somebody watches or stops one.
    """
    if sampling.best_of == 1:
        rows = sample_rows(
            model,
            samples,
            sampling,
            endless=endless,
            graphs=graphs,
            on_token=on_token,
            on_step=on_step,
            stop=stop,
        )
        return [row.piece() for row in rows]
    if on_step is not None or stop is not None:
        raise ConfigError(
            f"--best_of {sampling.best_of}: found a piece that is handed out while it is written; "
            "allowed: 1"
        )
    # A piece is the first of its own candidates.
    candidates = [
        replace(sample, seed=row_seed(sample.seed, number, _CANDIDATE) if number else sample.seed)
        for sample in samples
        for number in range(sampling.best_of)
    ]
    rows = sample_rows(
        model, candidates, sampling, endless=endless, graphs=graphs, on_token=on_token
    )
    groups = [rows[k : k + sampling.best_of] for k in range(0, len(rows), sampling.best_of)]
    return [min(group, key=Row.nats_per_note).piece() for group in groups]


def sample_rows(
    model: MuseFormer,
    samples: Sequence[Sample],
    sampling: SamplingConfig,
    *,
    endless: bool = False,
    graphs: DecodeGraphs | None = None,
    on_token: Callable[[int], None] | None = None,
    on_step: Callable[[Sequence[Sequence[int]]], None] | None = None,
    stop: Callable[[int], bool] | None = None,
) -> list[Row]:
    """The loop of `generate_batch`; where the best is to be chosen, rows know how likely they are.

    Args:
        model: see `generate_batch`, as the others.
        samples: each by itself, whatever `sampling.best_of` is.
        sampling: temperature and cut-offs.
        endless: whether rows slide.
        graphs: to decode compiled.
        on_token: called after each step.
        on_step: called after each step.
        stop: asked after each step.
    """
    max_tokens = model.config.max_seq_len
    rows = [_row_of(sample, sampling, max_tokens) for sample in samples]
    # As far as the shortest prefix all rows go at once; where one has more, it is fed on.
    num_shared = min(len(row.prefix) for row in rows)
    shared_BN = np.stack([row.prefix[:num_shared] for row in rows])
    for row in rows:
        row.ids.extend(row.prefix[:num_shared].tolist())
    num_bars = max(sample.controls.num_bars for sample in samples)
    if endless:
        num_bars = min(num_bars, num_summaries(max_tokens))
    injection = _side_by_side(samples)
    cache = DecodeCache(model, len(samples), injection, graphs=graphs, num_bars=num_bars)
    labeller = Labeller(shared_BN)
    active_B = np.ones(len(samples), dtype=bool)
    logits_BV = cache.add(shared_BN, labeller.prefix, active_B)
    num_sampled, going = 0, rows
    while True:
        allowed_BV = torch.from_numpy(np.stack([row.allowed() for row in going]))
        uniform_B = torch.tensor([row.draw() for row in going])
        moved_BV = move_mass(logits_BV, allowed_BV)
        ids_B = sample_tokens(moved_BV, allowed_BV, sampling, uniform_B).numpy()
        # Of the model's own distribution: without mask, temperature and cut-offs.
        nats_B = _nats(logits_BV, ids_B) if sampling.best_of > 1 else np.zeros(len(going))
        for number, row in enumerate(going):
            if not row.is_finished:
                row.nats += 0.0 if row.is_told else float(nats_B[number])
                num_sampled += not row.is_told
                ids_B[number] = row.take(int(ids_B[number]))
        active_B = np.array([not row.is_finished for row in going])
        if on_token is not None:
            on_token(num_sampled)
        if on_step is not None:
            on_step([row.ids for row in rows])
        if not active_B.any() or (stop is not None and stop(num_sampled)):
            break

        for number, row in enumerate(going):
            if endless and active_B[number] and (window := row.context.slide(row.ids)) is not None:
                cache.restart(number, window.ids, window.num_skipped)
                labeller.restart(number, window.ids)
        labels_4B = labeller.advance(ids_B)
        # Fewer rows would be other graphs, and a graph takes about as long for any number of them.
        if graphs is None and active_B.mean() < _LEAST_ACTIVE_SHARE:
            kept = np.flatnonzero(active_B)
            cache.keep(kept)
            labels_4B = labeller.keep(kept)
            going, ids_B, active_B = [going[k] for k in kept], ids_B[kept], active_B[kept]
        # A bar token says that the bar before it is complete.
        closing = np.flatnonzero(active_B & (labels_4B[2] == 0) & (labels_4B[0] > 0))
        cache.close_bar(closing, labels_4B[0, closing] - 1)
        logits_BV = cache.add(ids_B[:, None], labels_4B[:, :, None], active_B)
    return rows


def _row_of(sample: Sample, sampling: SamplingConfig, max_tokens: int) -> Row:
    prefix = sample.controls.prefix(sample.told).astype(np.int64)
    mask = PieceMask(prefix.tolist(), sample.controls.wishes, sampling.no_repeat_bars)
    return Row(prefix, mask, Context(max_tokens, sample.controls.num_bars), sample.seed)


def _nats(logits_BV: torch.Tensor, ids_B: np.ndarray) -> np.ndarray:
    """(B,) of the tokens that were drawn."""
    targets_B = torch.from_numpy(ids_B).to(logits_BV.device)
    return F.cross_entropy(logits_BV.float(), targets_B, reduction="none").cpu().numpy()


def _side_by_side(samples: Sequence[Sample]) -> Injection | None:
    """The summaries of all rows; None where no row has any."""
    return join_rows(
        [
            None
            if sample.injection is None
            else sample.injection.first_bars(sample.controls.num_bars)
            for sample in samples
        ]
    )
