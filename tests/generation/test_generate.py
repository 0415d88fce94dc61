"""Sampled pieces decode, keep the wishes that the grammar enforces, and repeat with their seed."""

import numpy as np
import pytest
import torch
from miditoolkit import MidiFile

from meloformer.errors import ConfigError, GenerationError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import Sample, generate, generate_batch
from meloformer.generation.sampling import SamplingConfig, sample_tokens
from meloformer.midi import grid
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from meloformer.model.injection import Injection
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import Attributes
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import KIND_OF, Kind
from tests.layouts import tiny_config


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    torch.manual_seed(0)
    return MuseFormer(tiny_config(num_layers=2)).eval()


def test_twenty_of_twenty_samples_of_random_weights_decode(model, tmp_path) -> None:
    """Random weights choose among all that the grammar allows: the hardest case for decoding."""
    pieces = generate(
        model, ControlConfig(bars=3), SamplingConfig(top_p=1.0), num_samples=20, seed=1
    )
    for number, ids in enumerate(pieces):
        piece = decode(ids)
        assert piece.num_bars == 3
        path = tmp_path / f"{number}.mid"
        write_midi(to_piece(piece), path)
        num_notes = sum(len(track.notes) for track in MidiFile(str(path)).instruments)
        assert num_notes == piece.num_notes > 0


def test_wishes_come_true(model) -> None:
    controls = ControlConfig(
        bars=5, tempo=90, time_signature="6/8", key="D minor", instruments=("drums", "32")
    )
    for ids in generate(model, controls, SamplingConfig(), num_samples=4, seed=2):
        piece = decode(ids)
        assert piece.num_bars == 5
        assert {grid.METRES[index] for index in piece.bar_metre} == {(6, 8)}
        assert set(piece.instrument) <= {grid.DRUMS, 33}
        assert abs(grid.TEMPOS_BPM[piece.bar_tempo] / 90 - 1).max() < 0.03


def test_a_seed_gives_the_same_pieces_and_another_seed_others(model) -> None:
    def sample(seed: int) -> list[np.ndarray]:
        return generate(model, ControlConfig(bars=2), SamplingConfig(), num_samples=2, seed=seed)

    first, again, other = sample(3), sample(3), sample(4)
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


@pytest.mark.parametrize("rule", ["museformer", "halves"])
def test_a_piece_is_the_same_alone_and_beside_others_of_other_kinds(rule: str) -> None:
    """Other prefixes, other numbers of bars, with summaries from elsewhere and without."""
    torch.manual_seed(0)
    config = tiny_config(rule=rule, num_layers=4, open_summary_rate=0.3)
    model = MuseFormer(config).eval().double()
    lent = torch.randn(1, 5, config.width, dtype=torch.float64)
    injection = Injection(summaries_BSD=lent, mask_BS=torch.ones(1, 5, dtype=torch.bool))
    samples = [
        Sample(controls=ControlConfig(bars=3, tempo=90, key="D minor"), seed=4),
        Sample(controls=ControlConfig(bars=2), injection=injection, seed=5),
        Sample(
            controls=ControlConfig(bars=5, instruments=("drums", "0", "32")),
            told=Attributes(tempo=9, key=4, metre=grid.METRE_INDEX[(3, 4)]),
            injection=injection,
            seed=6,
        ),
        Sample(controls=ControlConfig(bars=2), seed=5),
    ]
    sampling = SamplingConfig(top_p=1.0)
    together = generate_batch(model, samples, sampling)
    alone = [generate_batch(model, [sample], sampling)[0] for sample in samples]
    assert all(map(np.array_equal, together, alone))
    assert not np.array_equal(together[1], together[3]), "summaries are heard"
    assert [decode(ids).num_bars for ids in together] == [3, 2, 5, 2]
    for sample, ids in zip(samples, together, strict=True):
        prefix = sample.controls.prefix(sample.told)
        assert np.array_equal(ids[: len(prefix)], prefix)


def test_more_samples_leave_the_first_ones_as_they_were(model) -> None:
    few, many = (
        generate(model, ControlConfig(bars=2), SamplingConfig(), num_samples=count, seed=3)
        for count in (2, 4)
    )
    assert all(map(np.array_equal, few, many))
    assert len({ids.tobytes() for ids in many}) == 4


def test_a_stopped_piece_ends_with_its_last_finished_bar_and_decodes(model) -> None:
    """Notes of the finished bars alone; a piece that stops before its first bar ends is empty."""
    controls, sampling = ControlConfig(bars=6), SamplingConfig(top_p=1.0)
    whole = generate(model, controls, sampling, num_samples=4, seed=5)
    num_tokens = sum(map(len, whole)) // 2
    cut = generate(
        model, controls, sampling, num_samples=4, seed=5, stop=lambda count: count >= num_tokens
    )
    assert any(len(part) < len(ids) for part, ids in zip(cut, whole, strict=True))
    for part, ids in zip(cut, whole, strict=True):
        assert np.array_equal(part, ids[: len(part)])
        if len(part) < len(ids):
            assert KIND_OF[ids[len(part)]] == Kind.BAR
            assert decode(part).num_bars < decode(ids).num_bars

    (nothing,) = generate(model, controls, sampling, seed=5, stop=lambda count: True)
    assert nothing.tolist() == controls.prefix().tolist()
    longer = Sample(controls=ControlConfig(bars=6, tempo=90, key="D minor"))
    for ids, sample in zip(
        generate_batch(model, [Sample(controls=controls), longer], sampling, stop=lambda _: True),
        (Sample(controls=controls), longer),
        strict=True,
    ):
        assert ids.tolist() == sample.controls.prefix().tolist()


def draws(count: int) -> torch.Tensor:
    """Uniform ones, with both ends of what may be drawn."""
    inside = torch.rand(count - 2, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.tensor([0.0, 1 - 2**-24]), inside])


def test_tokens_come_as_often_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    logits = torch.log(probabilities).expand(20_000, -1)
    everything = torch.ones_like(logits, dtype=torch.bool)
    drawn = sample_tokens(logits, everything, SamplingConfig(top_p=1.0), draws(20_000))
    shares = torch.bincount(drawn, minlength=4) / 20_000
    assert shares[1] == 0 and torch.allclose(shares, probabilities, atol=0.015)


def test_cut_offs_keep_the_likeliest_tokens_only() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(400, -1)
    everything = torch.ones_like(logits, dtype=torch.bool)

    def seen(**settings) -> set[int]:
        drawn = sample_tokens(logits, everything, SamplingConfig(**settings), draws(400))
        return set(drawn.tolist())

    assert seen(top_p=1.0) == {0, 1, 2, 3}
    assert seen(top_p=1.0, top_k=2) == {0, 1}
    assert seen(top_p=0.6) == {0, 1}
    assert seen(top_p=0.01) == {0}
    assert seen(temperature=0) == {0}
    assert seen(top_p=1.0, temperature=0.01) == {0}


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = torch.tensor([[9.0, 0.0, -9.0]]).expand(200, -1)
    allowed = torch.tensor([[False, True, True]]).expand(200, -1)
    drawn = sample_tokens(logits, allowed, SamplingConfig(top_p=1.0), draws(200))
    assert 0 not in drawn


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"bars": 0}, "--bars 0"),
        ({"tempo": 1000.0}, "--tempo 1000: allowed are"),
        ({"time_signature": "4/5"}, "--time_signature 4/5: allowed are"),
        ({"key": "H major"}, "allowed are a root, such as C"),
        ({"instruments": ("128",)}, "allowed are drums, the programs 0 to 127 and"),
        ({"density": -1.0}, "--density -1"),
    ],
)
def test_an_impossible_wish_is_refused_with_what_is_allowed(wish, message) -> None:
    with pytest.raises(GenerationError, match=message):
        ControlConfig(**wish)


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}])
def test_impossible_sampling_is_refused(settings) -> None:
    with pytest.raises(ConfigError):
        SamplingConfig(**settings)
