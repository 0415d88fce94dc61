"""Texts and the summaries of the windows that they describe, joined and drawn.

Which rows form a step is a pure function of the seed: any number of ranks shares the same ones out.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from meloformer.bridge.bridges import BridgeBatch
from meloformer.bridge.targets import SplitTargets, TargetWindow
from meloformer.errors import ConfigError

if TYPE_CHECKING:
    from meloformer.bridge.text_states import TextStatesFolder
    from meloformer.bridge_training.token_loss import WindowTokens

# Of the windows of the training split; below it captions and summaries are of two sets of shards.
LEAST_MATCHED = 0.5


class Row(NamedTuple):
    """One row of a batch.

    Args:
        pair: number of the window among those that have a text.
        text: number of the text among all states.
        seed: of what is random in its loss.
    """

    pair: int
    text: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Windows of one split that have at least one text.

    Args:
        states: of all texts.
        targets: of the split.
        windows: numbers of the windows among the targets.
        texts: numbers of each window's texts among the states.
        seed: of the order, the choice of texts and what is random in the loss.
        tokens: reads the windows themselves; None where the loss does not ask for them.
    """

    states: "TextStatesFolder"
    targets: SplitTargets
    windows: Sequence[int]
    texts: Sequence[Sequence[int]]
    seed: int
    tokens: "WindowTokens | None" = None
    _orders: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def num_texts(self) -> int:
        """Texts of all windows."""
        return sum(map(len, self.texts))

    @property
    def longest_bars(self) -> int:
        """Bars of the longest of them; there is at least one."""
        return max(self.targets.windows[number].bars for number in self.windows)

    def some(self, most_windows: int | None) -> "Pairs":
        """At most so many windows, evenly spread over all; all if None."""
        if most_windows is None or most_windows >= len(self):
            return self
        chosen = [number * len(self) // most_windows for number in range(most_windows)]
        return replace(
            self,
            windows=[self.windows[pair] for pair in chosen],
            texts=[self.texts[pair] for pair in chosen],
            _orders={},
        )

    def rows_of_step(self, step: int, num_rows: int) -> list[Row]:
        """Rows of an optimizer step: epochs follow one another without a gap.

        Args:
            step: from 1.
            num_rows: of the global batch.
        """
        rows = []
        for number in range((step - 1) * num_rows, step * num_rows):
            epoch, place = divmod(number, len(self))
            order, choices = self._epoch(epoch)
            pair = int(order[place])
            texts = self.texts[pair]
            text = texts[int(choices[pair] * len(texts))]
            seed = np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)[0]
            # Below 2 ** 63: generators of torch take no more.
            rows.append(Row(pair, text, int(seed) >> 1))
        return rows

    def rows_in_order(self) -> list[Row]:
        """Every window once, with a text and a seed that never change; for validation.

        Windows take turns among their texts, so that languages and wordings are mixed.
        """
        return [Row(pair, texts[pair % len(texts)], pair) for pair, texts in enumerate(self.texts)]

    def num_bars(self, rows: Sequence[Row]) -> int:
        """Bars of some rows, without reading them."""
        return sum(self.window(row).bars for row in rows)

    def window(self, row: Row) -> TargetWindow:
        """The window that a row holds."""
        return self.targets.windows[self.windows[row.pair]]

    def batch(self, rows: Sequence[Row], num_bars: float | None = None) -> BridgeBatch:
        """Read rows from the disk.

        Args:
            rows: of this rank.
            num_bars: see `BridgeBatch`.
        """
        summaries_BSD, mask_BS = self.targets.batch([self.windows[row.pair] for row in rows])
        windows = [self.window(row) for row in rows]
        return BridgeBatch(
            states=self.states.batch([row.text for row in rows]),
            summaries_BSD=summaries_BSD,
            mask_BS=mask_BS,
            row_seeds=[row.seed for row in rows],
            pieces=[piece_number(window.key) for window in windows],
            tokens=[self.tokens.read(window) for window in windows] if self.tokens else (),
            num_bars=num_bars,
        )

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._orders:
            draws = np.random.default_rng([self.seed, epoch])
            # A step may reach into the next epoch, and the one before is not asked for again.
            for old in [known for known in self._orders if known < epoch - 1]:
                del self._orders[old]
            self._orders[epoch] = draws.permutation(len(self)), draws.random(len(self))
        return self._orders[epoch]


def piece_number(key: str) -> int:
    """A number for a piece's key, the same on all ranks; below 2 ** 63."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def join(
    split: str,
    states: "TextStatesFolder",
    targets: SplitTargets,
    *,
    seed: int,
    languages: Sequence[str] = (),
    tokens: "WindowTokens | None" = None,
) -> Pairs:
    """Join texts with windows by split, key and bars.

    Args:
        split: train, valid or test.
        states: of all texts, of all splits.
        targets: of this split.
        seed: see `Pairs`.
        languages: texts of others are left out; all if none is given.
        tokens: see `Pairs`.
    """
    texts_of = states.windows()
    found = []
    for number, window in enumerate(targets.windows):
        texts = texts_of.get((split, window.key, window.first_bar, window.last_bar), [])
        if languages:
            texts = [text for text in texts if states.texts[text].language in languages]
        if texts:
            found.append((number, texts))
    return Pairs(
        states=states,
        targets=targets,
        windows=[number for number, _ in found],
        texts=[texts for _, texts in found],
        seed=seed,
        tokens=tokens,
    )


def check_matched(pairs: Pairs, captions: str, folder: str, languages: Sequence[str]) -> None:
    """Refuse captions that are of other windows than the targets.

    Args:
        pairs: of the training split.
        captions: what the texts are called in messages.
        folder: of the targets.
        languages: that were asked for.

    Raises:
        ConfigError: no text at all, or fewer than half of the windows have one.
    """
    num_windows = len(pairs.targets)
    if not len(pairs.states):
        raise ConfigError(
            f"{captions}: found no text; allowed: captions of the windows of {folder}; make some "
            "with launch/caption.py"
        )
    if not num_windows:
        raise ConfigError(
            f"--targets {folder}: found no window to train on; extract the summaries of shards "
            "that hold training pieces with launch/extract_summaries.py"
        )
    if len(pairs) < LEAST_MATCHED * num_windows:
        spoken = f" in {' and '.join(languages)}" if languages else ""
        raise ConfigError(
            f"{captions}: found texts{spoken} for {len(pairs)} of the {num_windows} training "
            f"windows of {folder}; allowed: at least {LEAST_MATCHED:.0%} of them; caption the same "
            "shards with the same --max_bars, --max_seq_len and --overlap"
        )
