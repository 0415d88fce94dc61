"""How tokens are drawn, bars kept from coming twice, and the likeliest of several pieces kept."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meloformer.batches.collate import collate_rows
from meloformer.command_line import parse_flags
from meloformer.errors import ConfigError
from meloformer.evaluation.likelihood import row_length
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import Sample, generate, generate_batch, sample_rows
from meloformer.generation.piece_mask import PieceMask
from meloformer.generation.sampling import SamplingConfig, sample_tokens
from meloformer.generation.writing import WritingConfig
from meloformer.midi.grid import METRE_INDEX
from meloformer.model.attention import build_plan
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import (
    BLOCK_SIZES,
    EOS,
    INDEX_OF,
    KIND_OF,
    OFFSET,
    VOCAB_SIZE,
    Kind,
)
from meloformer.tokens.wishes import Wishes
from tests.layouts import tiny_config


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    torch.manual_seed(0)
    return MuseFormer(tiny_config(num_layers=2)).eval().double()


@pytest.mark.parametrize(
    ("settings", "wishes", "expected"),
    [
        ({}, {"bars": 2, "drums": False}, ["60079fe3553d354e", "3b2ff07b28f946ae"]),
        (
            {"temperature": 0.8, "top_k": 20, "top_p": 1.0},
            {"bars": 2},
            ["894ee94b028bd2e2", "455ab2b78da9e81e"],
        ),
        (
            {"temperature": 0.0},
            {"bars": 1, "tempo": 90, "time_signature": "1/8"},
            ["7a8620a2b80be80b", "7a8620a2b80be80b"],
        ),
        (
            {"temperature": 1.3, "top_p": 0.7},
            {"bars": 2, "tempo": 120, "key": "D minor", "density": 2.0},
            ["6740d0871f0c7a8d", "14a6aaf588543f06"],
        ),
    ],
)
def test_a_seed_gives_the_pieces_that_it_gave_when_this_was_written(
    model: MuseFormer, settings: dict, wishes: dict, expected: list[str]
) -> None:
    """A change of the draws is a change for users: it stands in CHANGELOG, and here."""
    pieces = generate(
        model,
        ControlConfig(**wishes),
        SamplingConfig(**settings),
        num_samples=2,
        seed=7,
        stop=lambda count: count >= 300,
    )
    found = [hashlib.sha256(ids.astype("<u2").tobytes()).hexdigest()[:16] for ids in pieces]
    assert found == expected


def shares(logits_V: torch.Tensor, config: SamplingConfig, count: int = 4000) -> torch.Tensor:
    """(V,) how often each token is drawn, by numbers that lie evenly between 0 and 1."""
    logits_BV = logits_V.expand(count, -1)
    uniform_B = (torch.arange(count) + 0.5) / count
    drawn_B = sample_tokens(logits_BV, logits_BV > -torch.inf, config, uniform_B)
    return torch.bincount(drawn_B, minlength=logits_V.shape[0]) / count


def test_min_p_keeps_what_is_at_least_such_a_share_of_the_likeliest() -> None:
    logits_V = torch.log(torch.tensor([0.15, 0.5, 0.3, 0.05]))
    kept = {
        min_p: set(
            shares(logits_V, SamplingConfig(top_p=1.0, min_p=min_p)).nonzero()[:, 0].tolist()
        )
        for min_p in (0.0, 0.09, 0.2, 0.5, 0.7, 1.0)
    }
    everything = {0, 1, 2, 3}
    assert kept == {
        0.0: everything,
        0.09: everything,
        0.2: {0, 1, 2},
        0.5: {1, 2},
        0.7: {1},
        1.0: {1},
    }
    hot = SamplingConfig(top_p=1.0, min_p=0.5, temperature=2.0)
    assert set(shares(logits_V, hot).nonzero()[:, 0].tolist()) == {0, 1, 2}, "of what is drawn from"


def test_a_kinds_temperature_shares_its_own_probability_out_and_moves_no_other() -> None:
    generator = torch.Generator().manual_seed(1)
    logits_V = torch.full((VOCAB_SIZE,), -torch.inf)
    allowed = [*range(OFFSET[Kind.PITCH], OFFSET[Kind.PITCH] + 6), OFFSET[Kind.ONSET] + 3]
    allowed += [OFFSET[Kind.BAR], OFFSET[Kind.BAR] + 1, EOS]
    logits_V[allowed] = 2 * torch.randn(len(allowed), generator=generator)
    config = SamplingConfig(
        temperature=0.8, top_p=1.0, kind_temperature=("pitch:2.5", "bar:0.4", "velocity:3")
    )
    found_V = shares(logits_V, config, count=10_000)

    # By hand, in float64: the probability of the kind, times that of the token within it.
    weights_V = np.exp(logits_V.double().numpy() / 0.8)
    expected_V = np.zeros(VOCAB_SIZE)
    for kind in Kind:
        block = slice(OFFSET[kind], OFFSET[kind] + BLOCK_SIZES[kind])
        own = {Kind.PITCH: 2.5, Kind.BAR: 0.4}.get(kind, 0.8)
        within = np.exp(logits_V[block].double().numpy() / own)
        if within.sum():
            expected_V[block] = weights_V[block].sum() / weights_V.sum() * within / within.sum()
    assert np.abs(found_V.numpy() - expected_V).max() < 4e-4
    shifted = shares(logits_V + 5.0, config, count=10_000)
    assert (shifted - found_V).abs().max() < 4e-4, "logits say no more than their differences"


def test_a_kinds_temperature_that_is_that_of_all_changes_no_piece(model: MuseFormer) -> None:
    controls = ControlConfig(bars=2)
    plain = SamplingConfig(temperature=0.9)
    named = SamplingConfig(temperature=0.9, kind_temperature=("pitch:0.9", "onset:0.9"))
    other = SamplingConfig(temperature=0.9, kind_temperature=("pitch:0.1",))
    first, same, different = (
        generate(model, controls, sampling, num_samples=1, seed=3)
        for sampling in (plain, named, other)
    )
    assert all(map(np.array_equal, first, same))
    assert not all(map(np.array_equal, first, different))


def hasty_piece(no_repeat_bars: int, **wishes: Any) -> list[set[tuple[int, int, int]]]:
    """Notes of each bar, by somebody who ends bars as soon as may be and likes low numbers."""
    wish = {"num_bars": 7, "metre": METRE_INDEX[1, 4], "tempo": 20, "least_notes": 1, **wishes}
    mask = PieceMask([], Wishes(**wish), no_repeat_bars)
    haste = np.isin(KIND_OF, [Kind.CONTROL, Kind.BAR]) * 10_000 - INDEX_OF
    ids = []
    while not mask.is_finished:
        allowed = np.flatnonzero(mask.allowed())
        ids.append(int(allowed[haste[allowed].argmax()]))
        mask.advance(ids[-1])
    music = decode(np.array(ids, dtype=np.uint16))
    notes = zip(
        music.bar.tolist(),
        music.instrument.tolist(),
        music.onset_steps.tolist(),
        music.pitch.tolist(),
        strict=True,
    )
    bars: list[set[tuple[int, int, int]]] = [set() for _ in range(music.num_bars)]
    for bar, *note in notes:
        bars[bar].add(tuple(note))
    return bars


def test_a_bar_is_none_of_so_many_before_it() -> None:
    assert len({frozenset(bar) for bar in hasty_piece(0)}) == 1
    bars = hasty_piece(2)
    for number, bar in enumerate(bars):
        assert bar and bar not in bars[max(0, number - 2) : number]
    assert bars[3] == bars[0], "further back it may be the same"
    assert len({frozenset(bar) for bar in hasty_piece(6)}) == 7, "the last one, too"


def test_bars_without_notes_may_repeat() -> None:
    bars = hasty_piece(4, least_notes=0)
    assert bars[:-1] == [set()] * 6 and bars[-1]


def test_wishes_come_before_the_ban_on_repeated_bars() -> None:
    """One pitch and one note a bar: where no other note may come, the bar ends as it is."""
    wishes = {"most_notes": 1, "instruments": {1}, "ranges": ((1, 60, 60),)}
    assert [len(bar) for bar in hasty_piece(3, **wishes)] == [1] * 7


def test_a_sampled_piece_repeats_no_bar(model: MuseFormer) -> None:
    controls = ControlConfig(
        bars=8, time_signature="1/8", tempo=120, instruments=("0",), pitch_range=("0:60-64",),
        chords=("C",), notes_per_bar="1-",
    )  # fmt: skip
    repeats = {}
    for number in (0, 1):
        sampling = SamplingConfig(temperature=0.05, no_repeat_bars=number)
        pieces = map(decode, generate(model, controls, sampling, num_samples=24, seed=1))
        repeats[number] = sum(
            spelt(music, bar) == spelt(music, bar - 1) for music in pieces for bar in range(1, 8)
        )
    assert repeats[0] > 0 and repeats[1] == 0


def spelt(music: Any, bar: int) -> list[tuple[int, int]]:
    inside = music.bar == bar
    return list(zip(music.onset_steps[inside].tolist(), music.pitch[inside].tolist(), strict=True))


def nats_of(model: MuseFormer, ids: np.ndarray, num_told: int) -> float:
    """Of all tokens behind the prefix, in one parallel pass."""
    batch = collate_rows([[ids]], row_length([ids]))
    with torch.no_grad():
        plan = build_plan(batch.layout, rule_of(model.config.rule))
        logits_BTV = model(batch.ids_BT, batch.layout, plan)
    told = logits_BTV[0, num_told - 1 : len(ids) - 1]
    targets = torch.from_numpy(ids[num_told:].astype(np.int64))
    return F.cross_entropy(told, targets, reduction="sum").item()


def num_notes(ids: np.ndarray) -> int:
    return int((KIND_OF[ids] == Kind.PITCH).sum())


def test_rows_know_what_a_parallel_pass_says_of_them(model: MuseFormer) -> None:
    """Under the model's own distribution, whatever they were sampled with."""
    samples = [
        Sample(controls=ControlConfig(bars=2, key="D minor", chords=("C", "G")), seed=4),
        Sample(controls=ControlConfig(bars=1), seed=5),
        Sample(controls=ControlConfig(bars=3, tempo=90, notes_per_bar="1-3"), seed=6),
    ]
    sampling = SamplingConfig(
        temperature=1.4, top_p=0.9, min_p=0.01, kind_temperature=("pitch:2",), best_of=2
    )
    for row, sample in zip(sample_rows(model, samples, sampling), samples, strict=True):
        ids = row.piece()
        expected = nats_of(model, ids, len(sample.controls.prefix()))
        assert row.nats == pytest.approx(expected, rel=1e-5)
        assert row.nats_per_note() == pytest.approx(expected / num_notes(ids), rel=1e-5)


def test_the_likeliest_candidate_is_kept_and_the_first_is_the_piece_without_others(
    model: MuseFormer,
) -> None:
    controls = ControlConfig(bars=2)
    (plain,) = generate(model, controls, SamplingConfig(), seed=2)
    told = len(controls.prefix())

    def best(count: int) -> np.ndarray:
        return generate(model, controls, SamplingConfig(best_of=count), seed=2)[0]

    nats = [nats_of(model, ids, told) / num_notes(ids) for ids in (plain, *map(best, (2, 5, 10)))]
    assert nats == sorted(nats, reverse=True) and nats[-1] < nats[0]


def test_the_best_of_several_is_the_same_whatever_is_sampled_beside_it(model: MuseFormer) -> None:
    sampling = SamplingConfig(
        best_of=3, no_repeat_bars=2, min_p=0.02, kind_temperature=("onset:0.8",)
    )
    samples = [
        Sample(controls=ControlConfig(bars=2, chords=("C",)), seed=1),
        Sample(controls=ControlConfig(bars=3, num_instruments=2, notes_per_bar="0-6"), seed=1),
        Sample(controls=ControlConfig(bars=1), seed=9),
    ]
    together = generate_batch(model, samples, sampling)
    alone = [generate_batch(model, [sample], sampling)[0] for sample in samples]
    assert all(map(np.array_equal, together, alone))
    assert [decode(ids).num_bars for ids in together] == [2, 3, 1]


def test_candidates_are_not_the_other_pieces_of_an_order(model: MuseFormer) -> None:
    pieces = generate(model, ControlConfig(bars=1), SamplingConfig(best_of=4), num_samples=4)
    assert len({ids.tobytes() for ids in pieces}) == 4


def test_a_piece_that_is_handed_out_while_it_is_written_has_no_candidates(
    model: MuseFormer,
) -> None:
    sample, sampling = Sample(controls=ControlConfig(bars=1)), SamplingConfig(best_of=2)
    for watched in ({"stop": lambda _: False}, {"on_step": lambda _: None}):
        with pytest.raises(ConfigError, match="--best_of 2: found a piece that is handed out"):
            generate_batch(model, [sample], sampling, **watched)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_p": 1.5}, "--min_p 1.5: allowed is 0 <= min_p <= 1"),
        ({"no_repeat_bars": -1}, "--no_repeat_bars -1"),
        ({"best_of": 0}, "--best_of 0: allowed are 1 to 64"),
        ({"best_of": 65}, "--best_of 65"),
        ({"temperature": float("nan")}, "--temperature nan: allowed"),
        ({"temperature": float("inf")}, "--temperature inf: allowed"),
        ({"top_k": float("nan")}, "--top_k nan: allowed"),
        ({"top_p": float("nan")}, "--top_p nan: allowed"),
        ({"min_p": float("nan")}, "--min_p nan: allowed"),
        ({"no_repeat_bars": float("inf")}, "--no_repeat_bars inf: allowed"),
        ({"best_of": float("nan")}, "--best_of nan: allowed"),
        ({"best_of": 2, "temperature": 0}, "--best_of 2 with --temperature 0"),
        ({"kind_temperature": ("key:1",)}, "--kind_temperature key:1: allowed are a kind"),
        ({"kind_temperature": ("pitch",)}, "--kind_temperature pitch: allowed"),
        ({"kind_temperature": ("pitch:0",)}, "--kind_temperature pitch:0"),
        ({"kind_temperature": ("pitch:nan",)}, "--kind_temperature pitch:nan"),
        ({"kind_temperature": ("pitch:1", "pitch:2")}, "pitch has two"),
        ({"kind_temperature": ("pitch:1",), "temperature": 0}, "with --temperature 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        SamplingConfig(**settings)
    assert "\n" not in str(refusal.value)


def test_wishes_and_settings_are_flags() -> None:
    flags = (
        "--chords C Am|--instruments drums 33 0|--num_instruments 2|--enter drums:4 33:0|"
        "--pitch_range 33:28-52|--notes_per_bar 2-12|--key C major|--scale_only|--min_p 0.1|"
        "--kind_temperature pitch:1.1 onset:0.9|--no_repeat_bars 4|--best_of 3"
    )
    words = []
    for flag in flags.split("|"):
        name, *values = flag.split()
        words += [name, " ".join(values)] if name == "--key" else [name, *values]
    read = parse_flags(WritingConfig, words)
    assert read.controls.wishes.entries == ((0, 4), (34, 0))
    assert read.controls.scale_only and read.controls.chords == ("C", "Am")
    assert read.sampling.kind_temperatures == {Kind.PITCH: 1.1, Kind.ONSET: 0.9}
    assert (read.sampling.min_p, read.sampling.no_repeat_bars, read.sampling.best_of) == (0.1, 4, 3)
