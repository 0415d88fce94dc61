"""Summaries of a long piece out of those of windows that overlap."""

from collections.abc import Sequence

import torch
from torch import Tensor

from meloformer.errors import ConfigError

# Bars first..last - 1 of a piece, and their summaries, (last - first, D).
WindowSummaries = tuple[int, int, Tensor]


def join_windows(windows: Sequence[WindowSummaries]) -> Tensor:
    """(bars, D) from the first bar of the first window to the last one of all.

    Where two overlap, one fades linearly into the other: of o bars in common, bar i takes
    (i + 1) / (o + 1) of the later window. Weights of a bar sum to one, however many windows it
    stands in.

    Args:
        windows: in order of their first bars.

    Raises:
        ConfigError: none; a bar that stands in no window; summaries that are not as many as bars.
    """
    if not windows:
        raise ConfigError("no window to join; a piece has at least one")
    weights = fade_weights([(first, last) for first, last, _ in windows])
    start, end = windows[0][0], max(last for _, last, _ in windows)
    joined_SD = windows[0][2].new_zeros(end - start, windows[0][2].shape[1])
    for (first, last, summaries_SD), weights_S in zip(windows, weights, strict=True):
        if len(summaries_SD) != last - first:
            raise ConfigError(
                f"window of bars {first}..{last}: found {len(summaries_SD)} summaries, expected "
                f"{last - first}, one a bar"
            )
        part_SD = weights_S[:, None].to(summaries_SD) * summaries_SD
        joined_SD[first - start : last - start] += part_SD
    return joined_SD


def fade_weights(spans: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(last - first,) float64 weight of each bar of each window; see `join_windows`.

    >>> [weights.tolist() for weights in fade_weights([(0, 4), (1, 5)])]
    [[1.0, 0.75, 0.5, 0.25], [0.25, 0.5, 0.75, 1.0]]
    """
    start, end = spans[0][0], max(last for _, last in spans)
    weights = []
    for number, (first, last) in enumerate(spans):
        weights_S = torch.ones(last - first, dtype=torch.float64)
        if number and (shared := min(spans[number - 1][1], last) - first) > 0:
            weights_S[:shared] *= _rising(shared)
        if number + 1 < len(spans) and (shared := last - max(spans[number + 1][0], first)) > 0:
            weights_S[last - first - shared :] *= 1 - _rising(shared)
        weights.append(weights_S)
    total_S = torch.zeros(end - start, dtype=torch.float64)
    for (first, last), weights_S in zip(spans, weights, strict=True):
        total_S[first - start : last - start] += weights_S
    if not bool((total_S > 0).all()):
        bar = start + int((total_S > 0).int().argmin())
        raise ConfigError(
            f"bar {bar + 1} of the piece stands in no window (alone it is longer than a row); "
            "take a model of a longer --max_seq_len, or another piece"
        )
    return [
        weights_S / total_S[first - start : last - start]
        for (first, last), weights_S in zip(spans, weights, strict=True)
    ]


def _rising(count: int) -> Tensor:
    """(count,) from just above 0 to just below 1."""
    return torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)
