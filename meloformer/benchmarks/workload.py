"""How much there is to compute in a training run, before any of it is run.

The rows are made up after POP909: three tracks, 64 tokens a bar (its shards have 63.1). Bars of
eight instruments are longer, and rules that count in bars then read more tokens.
"""

from dataclasses import dataclass

import numpy as np

from meloformer.batches.batch import Batch
from meloformer.batches.collate import collate_rows
from meloformer.command_line import check_at_least
from meloformer.midi import grid
from meloformer.model.config import SIZES, MuseFormerConfig
from meloformer.model.masks import Rule
from meloformer.model.rules import load_rule
from meloformer.tokens.vocabulary import BOS, VOCAB_SIZE, Kind, token_id
from meloformer.training.config import ModelSize, TrainConfig
from meloformer.training.work import layout_flops

_NUM_TRACKS, _NOTES_OF_A_TRACK = 3, 10
_TOKENS_PER_BAR = 1 + _NUM_TRACKS * (1 + 2 * _NOTES_OF_A_TRACK)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training run as far as its time depends on it.

    Args:
        pieces: training pieces.
        epochs: passes over them.
        tokens_per_piece: their mean length. Means of the corpora at hand, by `inspect_shards.py`:
            429 (js_fakes, 1,199 pieces), 792 (nottingham, 1,029), 2,153 (openscore_lieder, 1,046),
            2,356 (easyrpg_rtp, 20), 3,558 (mma_grooves, 395), 5,418 (pop909, 908), 6,365 (openmsx,
            31), 10,147 (freedoom, 110), 29,629 (openscore_quartets, 79); 2,825 over all 4,817. The
            default is that of POP909, complete songs.
        model_size: preset.
        attention: a preset rule, or a .json file with head groups.
        max_seq_len: tokens of a row.
    """

    pieces: int = 529_000
    epochs: int = TrainConfig.epochs
    tokens_per_piece: int = 5_418
    model_size: ModelSize = "small"
    attention: str = TrainConfig.attention
    max_seq_len: int = 8192

    def __post_init__(self) -> None:
        lowest = {"pieces": 1, "epochs": 1, "tokens_per_piece": _TOKENS_PER_BAR, "max_seq_len": 128}
        check_at_least(self, lowest)
        load_rule(self.attention)

    @property
    def num_tokens(self) -> int:
        """Tokens of all epochs."""
        return self.pieces * self.epochs * self.tokens_per_piece

    @property
    def model(self) -> MuseFormerConfig:
        """The model that is trained."""
        return MuseFormerConfig(
            **vars(SIZES[self.model_size]),
            vocab_size=VOCAB_SIZE,
            num_onsets=grid.MAX_BAR_STEPS,
            num_instruments=grid.NUM_INSTRUMENTS,
            max_seq_len=self.max_seq_len,
            rule=load_rule(self.attention),
            open_summary_rate=TrainConfig.open_summary_rate,
        )

    def flops_per_token(self) -> float:
        """Operations of forward and backward per token, unmasked pairs and summaries included."""
        layout = typical_batch(self.max_seq_len, self.tokens_per_piece).layout
        return layout_flops(self.model, layout) / self.max_seq_len

    def hours(self, tokens_per_second: float) -> float:
        """Time of the run at a steady speed."""
        return self.num_tokens / tokens_per_second / 3600


def typical_batch(seq_len: int, tokens_per_piece: int, blocks_rule: Rule | None = None) -> Batch:
    """One row, full to the last token, of pieces of one length.

    Args:
        seq_len: T.
        tokens_per_piece: of each but the last, which the end of the row cuts.
        blocks_rule: build block lists for this rule; None builds none.
    """
    # No piece begins at the last token: a window of one token holds no bar.
    starts = [*range(0, seq_len - 1, tokens_per_piece), seq_len]
    windows = [typical_piece(length) for length in np.diff(starts).tolist()]
    return collate_rows([windows], seq_len, blocks_rule)


def typical_piece(num_tokens: int) -> np.ndarray:
    """Bars of a few tracks, each with as many notes as the others, in the order of the vocabulary.

    Args:
        num_tokens: 2 or more; the last bar is cut.
    """
    note = [token_id(Kind.ONSET, 0), token_id(Kind.PITCH, 60)]
    bar = [token_id(Kind.BAR, 0)]
    for track in range(_NUM_TRACKS):
        bar += [token_id(Kind.INSTRUMENT, track), *note * _NOTES_OF_A_TRACK]
    num_bars = -(-num_tokens // len(bar))
    return np.array([BOS, *bar * num_bars][:num_tokens], dtype=np.uint16)
