"""Sampling from a plain decoder: cached, batched, without a grammar."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from meloformer.benchmarks.arena_decoder import Decoder
from meloformer.benchmarks.arena_miditok import BOS, EOS
from meloformer.generation.sampling import SamplingConfig, sample_tokens

# Below it rows that have ended are left out of the batch, which costs a copy of the cache.
_LEAST_ACTIVE_SHARE = 0.75


@torch.no_grad()
def sample_decoder(
    model: Decoder,
    num_samples: int,
    sampling: SamplingConfig,
    *,
    seed: int,
    max_tokens: int,
    is_over: Callable[[np.ndarray], bool],
) -> list[np.ndarray]:
    """Sample sequences side by side, from BOS on.

    Args:
        model: on its device.
        num_samples: B.
        sampling: temperature and cut-offs, of every field.
        seed: of all draws.
        max_tokens: longest sequence.
        is_over: asked with the tokens (T, F) of one row after each token; the one that makes it
            true is dropped, and the row is done.

    Returns:
        (T, F) int64 each, BOS first; EOS last where the model ended the piece.
    """
    device = model.final_norm.weight.device
    generator = torch.Generator().manual_seed(seed)
    num_fields = len(model.config.vocab_sizes)
    ids = np.full((num_samples, max_tokens, num_fields), BOS)
    lengths, rows = np.ones(num_samples, int), np.arange(num_samples)
    active = np.ones(num_samples, bool)
    caches = model.new_caches(max_tokens)
    newest_RF = torch.full((num_samples, num_fields), BOS)
    for length in range(1, max_tokens):
        states_RD = model.states(newest_RF[:, None].to(device), caches)[:, -1]
        newest_RF = _next_tokens(model, states_RD, sampling, generator)
        for place in np.flatnonzero(active[rows]).tolist():
            row = int(rows[place])
            ids[row, length] = newest_RF[place].numpy()
            lengths[row] = length + 1
            if ids[row, length, 0] == EOS:
                active[row] = False
            elif is_over(ids[row, : length + 1]):
                active[row], lengths[row] = False, length
        if not active.any():
            break
        going = active[rows]
        if going.mean() < _LEAST_ACTIVE_SHARE:
            kept = torch.from_numpy(np.flatnonzero(going))
            rows, newest_RF = rows[going], newest_RF[kept]
            for cache in caches:
                cache.keep(kept.to(device))
    return [of_row[:length] for of_row, length in zip(ids, lengths.tolist(), strict=True)]


def _next_tokens(
    model: Decoder, states_RD: Tensor, sampling: SamplingConfig, generator: torch.Generator
) -> Tensor:
    """(R, F) on the CPU: every field in turn."""
    fields: list[Tensor] = []
    before_RD = None
    for field, vocab_size in enumerate(model.config.vocab_sizes):
        logits_RV = model.field_logits(states_RD, field, before_RD)
        allowed_RV = torch.ones(len(states_RD), vocab_size, dtype=torch.bool)
        uniform_R = torch.rand(len(states_RD), generator=generator)
        fields.append(sample_tokens(logits_RV, allowed_RV, sampling, uniform_R))
        before_RD = model.with_field(before_RD, field, fields[-1].to(states_RD.device))
    return torch.stack(fields, dim=1)
