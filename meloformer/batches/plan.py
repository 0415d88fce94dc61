"""The plan: which windows stand in which row of which optimizer step.

A pure function of (index, PlanConfig, epoch). Ranks, workers and micro-batches are unknown here, so
none of them can change what a step trains on. Memory is bounded by a group of shards; the cursor
holds what a group left over, so that any step can be reached without replaying the epoch.
"""

import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from meloformer.batches.rows import Row, best_fit, next_fit
from meloformer.batches.windows import (
    BarLines,
    PieceIndex,
    SizedWindow,
    Window,
    cut_long_pieces,
    whole_pieces,
)
from meloformer.errors import BatchError, ConfigError
from meloformer.model.masks import num_summaries

Collate = Literal["bucket", "pack"]

CURSOR_FORMAT = 1

# Streams of random numbers of one epoch.
_SHARDS, _PIECES, _STEPS = range(3)


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What the plan depends on besides the shards.

    Args:
        max_seq_len: longest row, in tokens.
        collate: whole pieces in rows of few lengths, or full rows of one length.
        global_batch: rows of an optimizer step over all ranks and micro-steps.
        seed: of all permutations.
        bucket_multiple: row lengths are multiples of it.
        group_shards: shards whose pieces are mixed with each other.
    """

    max_seq_len: int = 8192
    collate: Collate = "bucket"
    global_batch: int = 48
    seed: int = 0
    bucket_multiple: int = 512
    group_shards: int = 16

    def __post_init__(self) -> None:
        for name in ("max_seq_len", "global_batch", "bucket_multiple", "group_shards"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: allowed 1 or more")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: allowed 0 or more")
        if self.collate not in ("bucket", "pack"):
            raise ConfigError(f"--collate {self.collate!r}: allowed bucket, pack")

    @property
    def max_bars(self) -> int:
        """Bars that the longest row takes."""
        return num_summaries(self.max_seq_len)

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Every length that a row can have, ascending; the last is max_seq_len.

        >>> PlanConfig(max_seq_len=1300).row_lengths
        (512, 1024, 1300)
        """
        if self.collate == "pack":
            return (self.max_seq_len,)
        shorter = range(self.bucket_multiple, self.max_seq_len, self.bucket_multiple)
        return (*shorter, self.max_seq_len)


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """A place between two steps: everything that is needed to go on from there.

    Args:
        epoch: 0 for the first.
        group: the group of shards that the next step comes from.
        step_in_group: steps of that group that are done.
        step_in_epoch: steps of the epoch that are done.
        carried: windows that earlier groups left to that group, in order.
    """

    epoch: int = 0
    group: int = 0
    step_in_group: int = 0
    step_in_epoch: int = 0
    carried: tuple[Window, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"format": CURSOR_FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Cursor":
        """The cursor that `to_json` wrote.

        Raises:
            BatchError: another format, or not a cursor.
        """
        if data.get("format") != CURSOR_FORMAT:
            raise BatchError(
                f"data cursor of format {data.get('format')!r}, allowed {CURSOR_FORMAT}; "
                "resume with the release that wrote it"
            )
        try:
            numbers = {
                name: int(data[name])
                for name in ("epoch", "group", "step_in_group", "step_in_epoch")
            }
            carried = tuple(Window(*map(int, window)) for window in data["carried"])
        except (KeyError, TypeError, ValueError) as error:
            raise BatchError(
                f"data cursor cannot be read ({error!r}); resume from another checkpoint"
            ) from error
        return cls(**numbers, carried=carried)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Rows of one optimizer step and the place after it."""

    epoch: int
    rows: tuple[Row, ...]
    cursor_after: Cursor


@dataclass(frozen=True, kw_only=True)
class EpochFacts:
    """What an epoch amounts to; `padding` leaves out the last step, which may be short."""

    num_steps: int
    num_rows: int
    num_windows: int
    num_tokens: int
    padding: float
    rows_per_length: dict[int, int]


def plan_fingerprint(index: PieceIndex, config: PlanConfig) -> str:
    """Short hash of all that the plan is a function of: a cursor is worth nothing under another."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for array in (index.num_tokens, index.num_bars, index.prefix_length):
        digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    digest.update(str(index.num_shards).encode())
    return digest.hexdigest()[:16]


def iterate_steps(
    index: PieceIndex, config: PlanConfig, cursor: Cursor | None = None
) -> Iterator[Step]:
    """Steps from a cursor to the end of its epoch.

    Every window of the epoch is in exactly one step, and only the epoch's last step may hold fewer
    rows than `global_batch`.

    Raises:
        BatchError: no pieces, or a single bar is longer than a row.
    """
    cursor = cursor or Cursor()
    if len(index.num_tokens) == 0:
        raise BatchError("a split without pieces, allowed 1 or more; build shards from more files")
    shards = [shard for shard in range(index.num_shards) if index.pieces_of_shard(shard)]
    shards = _random(config, cursor.epoch, _SHARDS).permutation(shards).tolist()
    num_groups = -(-len(shards) // config.group_shards)
    next_epoch = Cursor(epoch=cursor.epoch + 1)
    for group in range(cursor.group, num_groups):
        is_last = group == num_groups - 1
        start = group * config.group_shards
        pieces = [index.pieces_of_shard(s) for s in shards[start : start + config.group_shards]]
        steps, left = _plan_group(index, config, np.concatenate(pieces), cursor, is_last)
        for done in range(cursor.step_in_group, len(steps)):
            cursor = replace(cursor, step_in_group=done + 1, step_in_epoch=cursor.step_in_epoch + 1)
            after = cursor
            if done + 1 == len(steps):
                after = next_epoch if is_last else _next_group(cursor, left)
            yield Step(epoch=cursor.epoch, rows=tuple(steps[done]), cursor_after=after)
        cursor = _next_group(cursor, left)


def epoch_facts(index: PieceIndex, config: PlanConfig, epoch: int = 0) -> EpochFacts:
    """Plan an epoch and count."""
    num_steps = num_rows = num_windows = num_tokens = 0
    lengths: Counter[int] = Counter()
    last_tokens = last_padded = 0
    for step in iterate_steps(index, config, Cursor(epoch=epoch)):
        num_steps += 1
        num_rows += len(step.rows)
        num_windows += sum(len(row.windows) for row in step.rows)
        last_tokens = sum(row.tokens for row in step.rows)
        last_padded = sum(row.length for row in step.rows)
        num_tokens += last_tokens
        lengths.update(row.length for row in step.rows)
    padded = sum(length * count for length, count in lengths.items()) - last_padded
    return EpochFacts(
        num_steps=num_steps,
        num_rows=num_rows,
        num_windows=num_windows,
        num_tokens=num_tokens,
        padding=1 - (num_tokens - last_tokens) / padded if padded else 0.0,
        rows_per_length=dict(sorted(lengths.items())),
    )


def build_rows(windows: list[list[SizedWindow]], config: PlanConfig) -> list[Row]:
    """Give filled rows the shortest length that takes their tokens and their bars."""
    lengths = config.row_lengths
    bars_of_length = [num_summaries(length) for length in lengths]
    rows = []
    for row in windows:
        tokens = sum(sized.tokens for sized in row)
        bars = sum(sized.bars for sized in row)
        shape = max(bisect_left(lengths, tokens), bisect_left(bars_of_length, bars))
        rows.append(Row(tuple(sized.window for sized in row), tokens, bars, lengths[shape]))
    return rows


def _next_group(cursor: Cursor, carried: tuple[Window, ...]) -> Cursor:
    return replace(cursor, group=cursor.group + 1, step_in_group=0, carried=carried)


def _random(config: PlanConfig, epoch: int, stream: int, group: int = 0) -> np.random.Generator:
    return np.random.default_rng([config.seed, epoch, stream, group])


def _plan_group(
    index: PieceIndex,
    config: PlanConfig,
    pieces: np.ndarray,
    cursor: Cursor,
    is_last: bool,
) -> tuple[list[list[Row]], tuple[Window, ...]]:
    """Steps of the cursor's group of shards, and the windows that are left to the next one."""
    pieces = _random(config, cursor.epoch, _PIECES, cursor.group).permutation(pieces)
    windows = [BarLines.of(index, w.piece).window(*w) for w in cursor.carried]
    windows += whole_pieces(index, pieces)
    random = _random(config, cursor.epoch, _STEPS, cursor.group)
    if config.collate == "bucket":
        steps, left = _bucket_steps(index, config, windows, random)
    else:
        steps, left = _pack_steps(index, config, windows, random, is_last)
    if is_last and left:
        steps.append(left)
        left = []
    return steps, tuple(window for row in left for window in row.windows)


def _bucket_steps(
    index: PieceIndex, config: PlanConfig, windows: list[SizedWindow], random: np.random.Generator
) -> tuple[list[list[Row]], list[Row]]:
    whole = list(cut_long_pieces(index, windows, config.max_seq_len, config.max_bars))
    filled = best_fit(whole, config.max_seq_len, config.max_bars)
    rows = build_rows(filled, config)
    rows = [rows[i] for i in random.permutation(len(rows)).tolist()]

    by_length: dict[int, list[Row]] = {}
    for row in rows:
        by_length.setdefault(row.length, []).append(row)
    size = config.global_batch
    steps, rest = [], []
    for length in sorted(by_length):
        same = by_length[length]
        whole_steps = len(same) // size * size
        steps += [same[i : i + size] for i in range(0, whole_steps, size)]
        rest += same[whole_steps:]

    # The emptiest rows wait: the next group has windows that fill them.
    num_left = len(rest) % size
    rest.sort(key=lambda row: row.length - row.tokens, reverse=True)
    left, rest = rest[:num_left], sorted(rest[num_left:], key=lambda row: row.length)
    steps += [rest[i : i + size] for i in range(0, len(rest), size)]
    return [steps[i] for i in random.permutation(len(steps)).tolist()], left


def _pack_steps(
    index: PieceIndex,
    config: PlanConfig,
    windows: list[SizedWindow],
    random: np.random.Generator,
    is_last: bool,
) -> tuple[list[list[Row]], list[Row]]:
    filled = list(next_fit(index, windows, config.max_seq_len, config.max_bars))
    rows = build_rows(filled, config)
    # The last row is still open: the next group goes on filling it, so it waits, and waits last.
    num_closed = len(rows) if is_last else len(rows) - 1
    num_whole = num_closed // config.global_batch * config.global_batch
    order = random.permutation(num_whole).tolist()
    steps = [
        [rows[i] for i in order[start : start + config.global_batch]]
        for start in range(0, num_whole, config.global_batch)
    ]
    return steps, rows[num_whole:]
