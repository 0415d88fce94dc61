import numpy as np
import pytest
import torch

from meloformer.benchmarks.workload import Workload, typical_batch, typical_piece
from meloformer.errors import ConfigError
from meloformer.model.counts import StepPairs, training_flops
from meloformer.model.masks import num_summaries
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import PAD
from meloformer.training.config import TrainConfig


def test_bars_have_the_length_and_the_tracks_that_are_said() -> None:
    labels = token_labels(typical_piece(1 + 64 * 5))
    assert np.bincount(labels.bar[1:]).tolist() == [64] * 5
    assert sorted(set(labels.instrument.tolist())) == [-1, 0, 1, 2, 3]


@pytest.mark.parametrize("tokens_per_piece", [64, 65, 200, 5418])
@pytest.mark.parametrize("seq_len", [128, 1025, 2048])
def test_a_row_is_full_of_pieces_of_the_length(tokens_per_piece, seq_len) -> None:
    batch = typical_batch(seq_len, tokens_per_piece)
    assert (batch.ids_BT != PAD).all()
    lengths = torch.bincount(batch.layout.piece_BT[0]).tolist()
    assert sum(lengths) == seq_len
    assert all(abs(length - tokens_per_piece) <= 1 for length in lengths[:-1])
    assert int((batch.layout.piece_BS >= 0).sum()) <= num_summaries(seq_len)


def test_operations_of_the_full_rule_are_those_of_the_causal_triangle() -> None:
    """One piece fills the row: a token reads all before it and one summary for each bar that is
    over, a summary the prefix, its bar and the summaries up to its own.
    """
    workload = Workload(attention="full", model_size="tiny", max_seq_len=1024)
    bars = 1023 / 64
    update = 1024 * (1025 / 2 + bars / 2)
    summarize = bars * (1 + 64 + bars / 2)
    # Some rows have open summaries, read by the prefix, their bar and the later ones.
    num_open = TrainConfig.open_summary_rate * bars
    pairs = StepPairs(update, summarize, opened=num_open * (1 + 64 + bars / 2))
    expected = training_flops(workload.model, 1024, 16, pairs, num_open) / 1024
    assert workload.flops_per_token() == pytest.approx(expected, rel=0.01)


def test_a_sparser_rule_and_a_smaller_model_have_fewer_operations() -> None:
    def operations(**changes) -> float:
        return Workload(**{"max_seq_len": 2048, "model_size": "tiny"} | changes).flops_per_token()

    assert operations(attention="museformer") < operations(attention="full")
    assert operations(model_size="tiny") < operations(model_size="small")


def test_hours_are_tokens_over_speed() -> None:
    workload = Workload(pieces=10, epochs=3, tokens_per_piece=1200)
    assert workload.hours(tokens_per_second=10) == 1.0


@pytest.mark.parametrize(
    "flags",
    [{"pieces": 0}, {"tokens_per_piece": 63}, {"max_seq_len": 127}, {"attention": "fully"}],
)
def test_what_cannot_be_is_refused(flags) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(flags))} .*allowed: "):
        Workload(**flags)
