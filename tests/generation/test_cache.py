"""The cache against the parallel pass: the same logits, whatever the rule."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meloformer.generation.cache import DecodeCache
from meloformer.generation.cache_store import bars_within_reach
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.labeller import Labeller
from meloformer.generation.sampling import SamplingConfig
from meloformer.model import attention
from meloformer.model.injection import Injection
from meloformer.model.masks import RULES, HeadGroup, Rule, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import KIND_OF, Kind, is_kind
from meloformer.tokens.windows import bar_starts
from meloformer.tokens.wishes import Wishes
from tests.layouts import layout_of, tiny_config


def a_model(rule: str | Rule = "halves", num_layers: int = 3, **changes) -> MuseFormer:
    torch.manual_seed(0)
    return MuseFormer(tiny_config(rule=rule, num_layers=num_layers, **changes)).eval().double()


def some_pieces(num: int, bars: int = 4) -> list[np.ndarray]:
    """Sequences that the grammar allows, of different lengths, EOS cut off."""
    pieces = generate(
        a_model(),
        ControlConfig(bars=bars, instruments=("drums", "0", "40")),
        SamplingConfig(top_k=40),
        num_samples=num,
        seed=7,
    )
    return [piece[:-1].astype(np.int64) for piece in pieces]


def step_by_step(
    model: MuseFormer, pieces: list[np.ndarray], injection: Injection | None = None
) -> list[torch.Tensor]:
    """Logits of every position of every piece, fed one token at a time in one batch.

    Rows that have ended stay for three tokens and are then left out, the others turned round.
    """
    rows = np.arange(len(pieces))
    cache = DecodeCache(model, len(pieces), injection)
    labeller = Labeller(np.stack([piece[:1] for piece in pieces]))
    logits: list[list[torch.Tensor]] = [[] for _ in pieces]
    lengths = np.array([len(piece) for piece in pieces])
    for t in range(lengths.max()):
        if (lengths[rows] + 3 == t).any():
            kept = np.flatnonzero(lengths[rows] > t)[::-1].copy()
            cache.keep(kept)
            labeller.keep(kept)
            rows = rows[kept]
        active = lengths[rows] > t
        ids = np.array([pieces[row][t] if t < lengths[row] else 0 for row in rows])
        labels = labeller.advance(ids) if t else labeller.now
        closing = np.flatnonzero(active & (labels[2] == 0) & (labels[0] > 0))
        cache.close_bar(closing, labels[0][closing] - 1)
        out = cache.add(ids[:, None], labels[:, :, None], active)
        for place in np.flatnonzero(active):
            logits[rows[place]].append(out[place])
    return [torch.stack(rows) for rows in logits]


# Of unequal shares, and with distances that no preset has.
CUSTOM = (HeadGroup(True, (1,), "instrument", 3), HeadGroup(False, (0, 2)))


@pytest.mark.parametrize(
    ("rule", "num_kv_heads"),
    [*((name, heads) for name in RULES for heads in (2, 4)), (CUSTOM, 4)],
)
def test_a_batch_step_by_step_equals_each_piece_in_parallel(rule, num_kv_heads) -> None:
    model = a_model(rule, num_heads=4, num_kv_heads=num_kv_heads)
    pieces = some_pieces(3)
    assert len({len(piece) for piece in pieces}) > 1
    for piece, found in zip(pieces, step_by_step(model, pieces), strict=True):
        layout = layout_of(piece)
        with torch.no_grad():
            expected = model(
                torch.from_numpy(piece)[None], layout, attention.build_plan(layout, rule_of(rule))
            )[0]
        assert torch.allclose(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("rule", "strategy", "layer"),
    [
        *((rule, strategy, 3) for rule in RULES for strategy in ("replace", "blend")),
        ("halves", "blend", 0),
        *(
            pytest.param(rule, strategy, layer, marks=pytest.mark.slow)
            for rule in RULES
            for strategy, layer in (("replace", 0), ("replace", 1), ("blend", 1))
        ),
    ],
)
def test_with_injected_summaries_step_by_step_equals_each_piece_in_parallel(
    rule, strategy, layer
) -> None:
    model = a_model(rule, num_layers=5)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    pieces, num_slots = some_pieces(3), 128
    # Fewer than bars in one row, all in another, with a hole in the third.
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, :2] = mask[1, :4] = mask[2, [0, 3]] = True
    injection = Injection(
        summaries_BSD=torch.randn(3, 6, model.config.width).double(),
        mask_BS=mask,
        strategy=strategy,
        layer=layer,
    )
    for row, found in enumerate(step_by_step(model, pieces, injection)):
        layout = layout_of(pieces[row])
        alone = Injection(
            summaries_BSD=F.pad(injection.summaries_BSD[row : row + 1], (0, 0, 0, num_slots - 6)),
            mask_BS=F.pad(mask[row : row + 1], (0, num_slots - 6)),
            strategy=strategy,
            layer=layer,
        )
        layout = alone.layout(layout)
        with torch.no_grad():
            plan = attention.build_plan(layout, rule_of(rule))
            expected = model(torch.from_numpy(pieces[row])[None], layout, plan, alone)[0]
        assert torch.allclose(found, expected, atol=1e-11, rtol=0), row
        plain = attention.build_plan(layout_of(pieces[row]), rule_of(rule))
        without = model(torch.from_numpy(pieces[row])[None], layout_of(pieces[row]), plain)[0]
        assert (found - without).abs().amax() > 1e-3, "it is felt at all"


def test_a_model_without_summaries_step_by_step_equals_each_piece_in_parallel() -> None:
    model = a_model("full", summaries=False)
    pieces = some_pieces(2)
    for piece, found in zip(pieces, step_by_step(model, pieces), strict=True):
        layout = layout_of(piece)
        plan = attention.build_plan(layout.without_summaries(), RULES["full"])
        with torch.no_grad():
            expected = model(torch.from_numpy(piece)[None], layout, plan)[0]
            causal = model(torch.from_numpy(piece)[None], layout, attention.causal_plan())[0]
        assert torch.allclose(found, expected, atol=1e-12, rtol=0)
        assert torch.allclose(causal, expected, atol=1e-12, rtol=0), "one piece a row: no mask"


class Adapted(torch.nn.Linear):
    """A linear map that is more than its weight, as adapters make it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + super().forward(x.flip(-1))


def test_linear_maps_that_are_more_than_their_weight_are_called_as_they_are() -> None:
    model = a_model(num_layers=2)
    for layer in model.layers:
        layer.query.__class__ = Adapted
    (piece,) = some_pieces(1, bars=2)
    (found,) = step_by_step(model, [piece])
    assert torch.allclose(found, in_parallel(model, piece), atol=1e-12, rtol=0)


def test_labels_that_come_one_by_one_are_those_of_the_whole() -> None:
    (piece,) = some_pieces(1)
    expected = token_labels(piece)
    labeller = Labeller(piece[None, :1])
    for t in range(1, len(piece)):
        bar, instrument, index, onset = labeller.advance(piece[t : t + 1])[:, 0]
        assert bar == expected.bar[t]
        assert instrument == expected.instrument[t]
        assert index == expected.index[t]
        assert onset == expected.onset[t]


def short_bars(num_bars: int, seed: int) -> np.ndarray:
    """A piece of bars of one or two notes, without EOS: many bars in few tokens."""
    rng = np.random.default_rng(seed)
    state = GrammarState(ControlConfig(bars=num_bars).prefix().tolist(), Wishes(num_bars=num_bars))
    ids = ControlConfig(bars=num_bars).prefix().tolist()
    wanted = (Kind.BAR, Kind.METRE, Kind.TEMPO, Kind.INSTRUMENT, Kind.ONSET, Kind.PITCH)
    for _ in range(num_bars):
        for kind in (*wanted, Kind.DURATION, Kind.VELOCITY):
            allowed = np.flatnonzero(state.allowed() & is_kind(KIND_OF, kind))
            if kind in (Kind.METRE, Kind.TEMPO) and state.num_bars > 1:
                continue
            ids.append(int(rng.choice(allowed[:9])))
            state.advance(ids[-1])
    return np.array(ids)


def in_parallel(model: MuseFormer, piece: np.ndarray) -> torch.Tensor:
    layout = layout_of(piece)
    plan = attention.build_plan(layout, rule_of(model.config.rule))
    with torch.no_grad():
        return model(torch.from_numpy(piece)[None], layout, plan)[0]


@pytest.mark.parametrize("rule", [*RULES, CUSTOM])
def test_a_beginning_read_bar_by_bar_equals_the_parallel_pass(rule) -> None:
    """It ends at a bar line, after a bar token, inside a bar; and goes on token by token."""
    model = a_model(rule, num_layers=2, num_heads=4, num_kv_heads=4)
    piece = short_bars(6, seed=1)
    expected = in_parallel(model, piece)
    starts = bar_starts(piece)
    for length in (starts[0], starts[1], starts[3], starts[3] + 1, starts[4] + 4):
        cache = DecodeCache(model, 1)
        found = [cache.read(piece[:length])]
        labeller = Labeller(piece[None, :length])
        for t in range(length, len(piece)):
            labels = labeller.advance(piece[t : t + 1])
            if KIND_OF[piece[t]] == Kind.BAR and labels[0, 0]:
                cache.close_bar(np.array([0]), labels[0] - 1)
            found.append(cache.add(piece[None, t : t + 1], labels[:, :, None], np.array([True])))
        assert torch.allclose(torch.cat(found), expected[length - 1 :], atol=1e-9, rtol=0)


NEAR = (HeadGroup(False, (1, 2)),)
REACHING = [name for name, rule in RULES.items() if bars_within_reach(rule) is None]


def test_what_no_later_token_reads_is_dropped_and_changes_nothing() -> None:
    """Rows of unequal lengths, which are dropped from at unequal places."""
    model = a_model(NEAR, num_layers=2)
    pieces = [short_bars(50, seed=1), short_bars(44, seed=2)]
    for piece, found in zip(pieces, step_by_step(model, pieces), strict=True):
        assert torch.allclose(found, in_parallel(model, piece), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("rule", "most"), [(NEAR, 256), ("museformer", 512), *((name, None) for name in REACHING)]
)
def test_room_for_tokens_is_bounded_where_a_rule_reads_near_bars_alone(rule, most) -> None:
    """33 bars and the prefix under `museformer`, and as much again to grow; nothing is lost."""
    model = a_model(rule, num_layers=2)
    piece = short_bars(120, seed=1)
    cache = DecodeCache(model, 1)
    logits_1V = cache.read(piece)
    assert torch.allclose(logits_1V[0], in_parallel(model, piece)[-1], atol=1e-9, rtol=0)
    room = cache.store.labels_4BT.shape[2]
    if most is None:
        assert room >= len(piece)
    else:
        assert room == most < len(piece)
