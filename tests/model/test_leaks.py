"""Nobody sees the future, a neighbour or another row: real pieces, the real encoder and collator.

Every perturbation goes through `collate_rows`, so all labels of a changed token are computed anew:
a leak through bar, instrument, onset or index would show as well as one through the ids.
"""

import dataclasses

import numpy as np
import pytest
import torch

from meloformer.batches.batch import Batch
from meloformer.batches.collate import collate_rows
from meloformer.model import attention
from meloformer.model.masks import RULES, Rule
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.filling import Hole, fill
from meloformer.tokens.vocabulary import EOS, KIND_OF, OFFSET, PAD, VOCAB_SIZE, Kind
from meloformer.tokens.windows import bar_starts, cut_window
from tests.layouts import tiny_config

SEQ_LEN = 640
# Sums run over other orders and padding when something else changes; nothing more may move.
TOLERANCE = 1e-12


def in_order(rule: Rule, order: str) -> Rule:
    return tuple(dataclasses.replace(group, order=order) for group in rule)


ALL_RULES = {
    f"{name}, stored by {order}": in_order(rule, order)
    for name, rule in RULES.items()
    for order in ("bar", "instrument")
} | {"halves, stored as trained": RULES["halves"]}


@pytest.fixture(scope="module")
def windows(chorale_shards) -> list[np.ndarray]:
    """Three windows of 2 bars, three of 6, some with a CONTINUE prefix."""
    index = ShardFolder.open(chorale_shards).split("train")
    cut = []
    for piece in range(6):
        ids = index.read(piece)
        first = 0 if piece % 2 == 0 else 2
        cut.append(cut_window(ids, first, first + (2 if piece < 3 else 6)))
    return sorted(cut[:3], key=len) + sorted(cut[3:], key=len)


@pytest.fixture(scope="module")
def filled_windows(chorale_shards) -> list[np.ndarray]:
    """The same music with a hole of bars, of an instrument, and of both."""
    index = ShardFolder.open(chorale_shards).split("train")
    holes = (
        Hole(first=1, last=2),
        Hole(first=0, last=1, instruments=(53,)),
        Hole(first=2, last=4),
        Hole(instruments=(1 + 52,)),
        Hole(first=2, last=4, instruments=(53,)),
    )
    return [
        fill(cut_window(index.read(piece), 0, 3 if piece < 2 else 6), hole)
        for piece, hole in enumerate(holes)
    ]


def a_model(**changes) -> MuseFormer:
    torch.manual_seed(0)
    # Narrow: who reads whom does not depend on the width. Two layers, so that what a summary has
    # read in the first travels on in the second.
    model = MuseFormer(tiny_config(num_layers=2, width=32, ffn_width=64, **changes))
    # Weights far from zero: attention that is nearly uniform would hide small leaks.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.double().eval()


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    return a_model()


def logits(model: MuseFormer, batch: Batch, rule: Rule) -> torch.Tensor:
    layout = batch.layout if model.config.summaries else batch.layout.without_summaries()
    with torch.no_grad():
        return model(batch.ids_BT, layout, attention.build_plan(layout, rule))


def row_logits(model: MuseFormer, row: list[np.ndarray], rule: Rule) -> torch.Tensor:
    return logits(model, collate_rows([row], SEQ_LEN), rule)[0]


def perturbations(ids: np.ndarray, rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    """(first changed position, changed sequence): single tokens, bar tokens, whole tails."""
    changed = []
    starts = bar_starts(ids)
    notes = np.flatnonzero(KIND_OF[ids] == Kind.PITCH)
    for position in (*starts[:-1], *rng.choice(notes, 6, replace=False), len(ids) - 1):
        other = ids.copy()
        other[position] = (other[position] + rng.integers(1, VOCAB_SIZE - 1)) % VOCAB_SIZE
        changed.append((int(position), other))
    # A note becomes a bar: every label after it moves to the next bar.
    into_bar = ids.copy()
    into_bar[notes[len(notes) // 2]] = OFFSET[Kind.BAR]
    changed.append((int(notes[len(notes) // 2]), into_bar))
    # A bar becomes a note: two bars melt into one.
    melted = ids.copy()
    melted[starts[2]] = OFFSET[Kind.PITCH] + 60
    changed.append((int(starts[2]), melted))
    # The end comes early, or another instrument begins.
    cut = ids[: starts[3] + 4].copy()
    cut[-1] = EOS
    changed.append((len(cut) - 1, cut))
    instrument = ids.copy()
    instrument[notes[5]] = OFFSET[Kind.INSTRUMENT] + 99
    changed.append((int(notes[5]), instrument))
    return changed


def neighbours(ids: np.ndarray) -> list[np.ndarray]:
    """The same window with other notes, with a bar for a note, and with its bars melted."""
    notes = np.flatnonzero(KIND_OF[ids] == Kind.PITCH)
    other_notes, into_bar, melted = ids.copy(), ids.copy(), ids.copy()
    other_notes[notes] = OFFSET[Kind.PITCH] + np.arange(len(notes)) % 128
    into_bar[notes[3]] = OFFSET[Kind.BAR]
    melted[bar_starts(ids)[1]] = OFFSET[Kind.PITCH]
    return [other_notes, into_bar, melted]


@pytest.mark.parametrize("rule", ALL_RULES.values(), ids=ALL_RULES)
def test_changing_a_later_token_leaves_every_earlier_logit_unchanged(rule, windows, model) -> None:
    rng = np.random.default_rng(0)
    before, ids, after = windows[0], windows[3], windows[1]
    expected = row_logits(model, [before, ids, after], rule)
    moved = 0
    for position, other in perturbations(ids, rng):
        found = row_logits(model, [before, other, after], rule)
        end = len(before) + position
        assert torch.allclose(found[:end], expected[:end], atol=TOLERANCE, rtol=0), position
        moved += not torch.allclose(found[end], expected[end], atol=1e-6)
    # The check can fail: what does depend on the changed token has moved.
    assert moved > 5


@pytest.mark.parametrize("rule", RULES)
def test_a_filled_window_sees_nothing_that_its_order_puts_later(
    rule, filled_windows, windows, model
) -> None:
    """The bars of the hole least of all: they stand last, and what they hold moves nothing."""
    rule = RULES[rule]
    for ids in (filled_windows[2], filled_windows[4]):
        test_changing_a_later_token_leaves_every_earlier_logit_unchanged(
            rule, [windows[0], filled_windows[0], windows[1], ids], model
        )
    first, second, third = filled_windows[0], windows[0], filled_windows[1]
    packed = [first, second, third, filled_windows[2]]
    test_a_packed_piece_has_the_logits_it_has_alone(rule, packed, model)
    test_changing_a_packed_neighbour_leaves_all_logits_unchanged(rule, packed, model)


@pytest.mark.parametrize("rule", RULES)
def test_a_hole_reads_the_bars_behind_it(rule, filled_windows, model) -> None:
    """Which stand before it: another note there moves the logits of the hole, in every rule."""
    ids = filled_windows[2]
    notes = np.flatnonzero(KIND_OF[ids] == Kind.PITCH)
    other = ids.copy()
    other[notes[0]] = OFFSET[Kind.PITCH] + (other[notes[0]] - OFFSET[Kind.PITCH] + 1) % 128
    hole = bar_starts(ids)[-3]
    expected, found = (row_logits(model, [one], RULES[rule])[hole:] for one in (ids, other))
    assert (found - expected).abs().max() > 1e-6


@pytest.mark.parametrize("rule", ALL_RULES.values(), ids=ALL_RULES)
def test_a_packed_piece_has_the_logits_it_has_alone(rule, windows, model) -> None:
    first, second, third = windows[2], windows[0], windows[1]
    packed = row_logits(model, [first, second, third], rule)
    start = 0
    for ids in (first, second, third):
        alone = row_logits(model, [ids], rule)[: len(ids)]
        found = packed[start : start + len(ids)]
        assert torch.allclose(found, alone, atol=TOLERANCE, rtol=0)
        start += len(ids)


@pytest.mark.parametrize("rule", ALL_RULES.values(), ids=ALL_RULES)
def test_changing_a_packed_neighbour_leaves_all_logits_unchanged(rule, windows, model) -> None:
    first, second, third = windows[0], windows[1], windows[2]
    expected = row_logits(model, [first, second, third], rule)
    own = slice(len(first), len(first) + len(second))
    for other in (*neighbours(first), windows[3]):
        found = row_logits(model, [other, second, third], rule)[len(other) :]
        moved = len(second) + len(third)
        kept = expected[len(first) :]
        assert torch.allclose(found[:moved], kept[:moved], atol=TOLERANCE, rtol=0)
    for other in (*neighbours(third), windows[3]):
        found = row_logits(model, [first, second, other], rule)
        assert torch.allclose(found[: own.stop], expected[: own.stop], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("rule", ALL_RULES.values(), ids=ALL_RULES)
def test_every_row_has_its_own_mask(rule, windows, model) -> None:
    rows = [[windows[0], windows[3]], [windows[2]], [], [windows[1], windows[0]]]
    together = logits(model, collate_rows(rows, SEQ_LEN), rule)
    for row, found in zip(rows, together, strict=True):
        length = sum(map(len, row))
        alone = row_logits(model, row, rule)
        assert torch.allclose(found[:length], alone[:length], atol=TOLERANCE, rtol=0)


def test_without_summaries_neither_the_future_nor_a_neighbour_is_seen(windows) -> None:
    full, twin = RULES["full"], a_model(rule="full", summaries=False)
    test_changing_a_later_token_leaves_every_earlier_logit_unchanged(full, windows, twin)
    test_a_packed_piece_has_the_logits_it_has_alone(full, windows, twin)
    test_changing_a_packed_neighbour_leaves_all_logits_unchanged(full, windows, twin)
    test_every_row_has_its_own_mask(full, windows, twin)


def test_what_stands_at_padding_reaches_no_logit(windows, model) -> None:
    rule = RULES["halves"]
    batch = collate_rows([[windows[2]]], SEQ_LEN)
    other_ids = batch.ids_BT.clone()
    assert (other_ids[0, len(windows[2]) :] == PAD).all()
    other_ids[0, len(windows[2]) :] = OFFSET[Kind.PITCH] + 60
    other = dataclasses.replace(batch, ids_BT=other_ids)
    length = len(windows[2])
    expected, found = (logits(model, b, rule)[0, :length] for b in (batch, other))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("rule", RULES)
def test_zeroing_the_summaries_changes_the_bars_that_read_them_and_no_other(
    rule, windows, model
) -> None:
    ids = windows[3]
    expected = row_logits(model, [ids], RULES[rule])
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    for layer in model.layers:
        torch.nn.init.zeros_(layer.coarse_key_value.weight)
    found = row_logits(model, [ids], RULES[rule])
    model.load_state_dict(kept)
    second_bar = bar_starts(ids)[1]
    # With values of zero a summary still takes part in the softmax; the first bar has none to read.
    assert torch.allclose(found[:second_bar], expected[:second_bar], atol=TOLERANCE, rtol=0)
    assert (found[second_bar : len(ids)] - expected[second_bar : len(ids)]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("rule", "summaries"), [*((rule, True) for rule in RULES), ("full", False)]
)
def test_every_parameter_gets_a_gradient_from_real_pieces(rule, summaries, windows) -> None:
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(rule=rule, summaries=summaries))
    batch = collate_rows([[windows[0], windows[3]], [windows[2]]], SEQ_LEN)
    layout = batch.layout if summaries else batch.layout.without_summaries()
    out = model(batch.ids_BT, layout, attention.build_plan(layout, RULES[rule]))
    torch.nn.functional.cross_entropy(out.flatten(0, 1), batch.targets_BT.flatten()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
