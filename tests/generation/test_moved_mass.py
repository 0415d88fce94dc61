"""What a mask strikes out goes to tokens that say the same, and nowhere else."""

import math

import numpy as np
import pytest
import torch

from meloformer.generation.moved_mass import move_mass
from meloformer.generation.part_writing import _with_one_end
from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.vocabulary import BOS, EOS, FILL, KIND_OF, VOCAB_SIZE, Kind
from meloformer.tokens.wishes import Wishes
from tests.tokens.pieces import ids_of

NOTE = "BOS BAR:Cmaj 4/4 TEMPO:120 #P4 T:0 P:60 L:24 V:66"


def allowed_after(beginning: str, wishes: Wishes) -> np.ndarray:
    first, *others = ids_of(beginning).tolist()
    state = GrammarState([first], wishes)
    for token_id in others:
        state.advance(token_id)
    return state.allowed()


def probabilities(logits_V: torch.Tensor, allowed_V: np.ndarray) -> np.ndarray:
    allowed_BV = torch.from_numpy(allowed_V)[None]
    moved_BV = move_mass(logits_V[None], allowed_BV)
    return torch.softmax(moved_BV.masked_fill(~allowed_BV, -torch.inf).double(), dim=1)[0].numpy()


def moved_one_by_one(logits_V: torch.Tensor, allowed_V: np.ndarray) -> list[float]:
    """The same with one probability after the other."""
    mass = [math.exp(one) for one in logits_V.double().tolist()]
    mass = [one / sum(mass) for one in mass]
    ends = [k for k in range(VOCAB_SIZE) if KIND_OF[k] == Kind.BAR or k == EOS]
    leaves = ends + [k for k in range(VOCAB_SIZE) if KIND_OF[k] == Kind.INSTRUMENT]
    for group in (ends, leaves):
        room = sum(mass[k] for k in group if allowed_V[k])
        if not room:
            continue
        total = sum(mass[k] for k in group)
        for k in group:
            mass[k] = mass[k] / room * total if allowed_V[k] else 0.0
    mass = [one if allowed_V[k] else 0.0 for k, one in enumerate(mass)]
    return [one / sum(mass) for one in mass]


@pytest.mark.parametrize(
    ("wishes", "beginning"),
    [
        (Wishes(num_bars=1), NOTE),  # no further bar
        (Wishes(num_bars=3), NOTE),  # no end
        (Wishes(num_bars=3, chords=(0, 14)), NOTE),  # a bar of one chord alone
        (Wishes(num_bars=2, instruments=(5, 9)), NOTE),  # one other instrument
        (Wishes(num_bars=1, instruments=(5,)), "BOS"),
        (Wishes(num_bars=1, playing=(5, 9)), NOTE),  # may not end yet
        (Wishes(), NOTE),
        (Wishes(), NOTE + " T:4"),  # a pitch alone
    ],
)
def test_probability_moves_within_its_group(wishes: Wishes, beginning: str) -> None:
    torch.manual_seed(0)
    allowed_V = allowed_after(beginning, wishes)
    for scale in (1.0, 6.0):
        logits_V = scale * torch.randn(VOCAB_SIZE)
        found = probabilities(logits_V, allowed_V)
        assert found == pytest.approx(moved_one_by_one(logits_V, allowed_V), abs=1e-6)


def test_a_model_that_is_sure_of_the_next_bar_ends_its_last_one() -> None:
    allowed_V = allowed_after(NOTE, Wishes(num_bars=1))
    logits_V = torch.full((VOCAB_SIZE,), -20.0)
    logits_V[KIND_OF == Kind.BAR] = 0.0
    logits_V[KIND_OF == Kind.ONSET] = -6.0
    assert probabilities(logits_V, allowed_V)[EOS] > 0.98
    struck_out = torch.softmax(logits_V.masked_fill(~torch.from_numpy(allowed_V), -torch.inf), 0)
    assert struck_out[EOS] < 1e-6  # what a mask alone makes of it


def test_logits_and_impossible_tokens_stay_as_they_are() -> None:
    logits_BV = torch.randn(2, VOCAB_SIZE)
    logits_BV[1, KIND_OF == Kind.BAR] = -torch.inf
    logits_BV[1, EOS] = -torch.inf
    before_BV = logits_BV.clone()
    allowed_BV = torch.zeros(2, VOCAB_SIZE, dtype=torch.bool)
    allowed_BV[:, BOS] = allowed_BV[:, EOS] = True
    moved_BV = move_mass(logits_BV, allowed_BV)
    assert torch.equal(logits_BV, before_BV)
    assert not moved_BV.isnan().any() and moved_BV[1, EOS] == -torch.inf


def test_where_a_part_is_written_forbidden_players_leave_their_share_to_the_bars_end_too() -> None:
    """At the start of a bar of a window whose last instruments are written."""
    is_bar, is_player = KIND_OF == Kind.BAR, KIND_OF == Kind.INSTRUMENT
    allowed_V = is_bar.copy()
    allowed_V[FILL] = True
    player = np.flatnonzero(is_player)[40]
    allowed_V[player] = True
    logits_V = torch.full((VOCAB_SIZE,), -30.0)
    logits_V[FILL], logits_V[player] = math.log(0.3), math.log(0.1)
    logits_V[np.flatnonzero(is_player)[7]] = math.log(0.6)  # may not play
    found = probabilities(*_with_one_end(logits_V, allowed_V))
    assert found[player] == pytest.approx(0.25, abs=1e-4)
    assert found[is_bar].sum() + found[FILL] == pytest.approx(0.75, abs=1e-4)
