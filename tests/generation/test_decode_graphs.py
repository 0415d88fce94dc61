"""Decoding through buffers of fixed shapes, compiled or not: what the cache computes call by call.

The fast tests call the step as it is or let torch trace it alone, which counts the graphs; the slow
ones compile it. The cache without graphs, which is held against the parallel pass elsewhere, is the
oracle of all.
"""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from meloformer.errors import GenerationError
from meloformer.generation.cache import DecodeCache
from meloformer.generation.controls import ControlConfig
from meloformer.generation.decode_graphs import DecodeGraphs
from meloformer.generation.generate import Sample, generate_batch
from meloformer.generation.labeller import Labeller
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.writing import WritingConfig
from meloformer.model.injection import Injection, join_rows
from meloformer.model.masks import RULES, HeadGroup, Rule
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.vocabulary import EOS, KIND_OF, Kind, is_kind
from meloformer.tokens.wishes import Wishes
from tests.layouts import tiny_config

LEAST_TOKENS = 16
CUSTOM = (HeadGroup(True, (1,), "instrument", 3), HeadGroup(False, (0, 2)))
NEAR = (HeadGroup(False, (0, 1)),)


def a_model(rule: str | Rule = "halves", num_layers: int = 2, **changes) -> MuseFormer:
    torch.manual_seed(0)
    settings = {"num_heads": 8, "num_kv_heads": 4, **changes}
    model = MuseFormer(tiny_config(rule=rule, num_layers=num_layers, **settings)).eval().double()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def a_piece(num_bars: int, num_players: int, seed: int) -> np.ndarray:
    """A sequence that the grammar allows, with a note of each player in each bar."""
    rng = np.random.default_rng(seed)
    ids = ControlConfig(bars=num_bars).prefix().tolist()
    state = GrammarState(ids, Wishes(num_bars=num_bars))
    opening = [Kind.BAR, Kind.METRE, Kind.TEMPO]
    played = [Kind.INSTRUMENT, Kind.ONSET, Kind.PITCH, Kind.DURATION, Kind.VELOCITY]
    for bar in range(num_bars):
        for kind in [*(opening if not bar else opening[:1]), *num_players * played]:
            allowed = np.flatnonzero(state.allowed() & is_kind(KIND_OF, kind))
            # Not the last: another player needs room behind the first.
            ids.append(int(allowed[rng.integers(min(len(allowed), 3))]))
            state.advance(ids[-1])
    return np.array([*ids, EOS])


def some_pieces(num: int, bars: int = 5, players: int = 2) -> list[np.ndarray]:
    """Of different lengths."""
    return [a_piece(bars - row, players, seed=row) for row in range(num)]


def step_by_step(cache: DecodeCache, pieces: list[np.ndarray]) -> list[torch.Tensor]:
    """Logits of every position of every piece behind the first four, which are read at once.

    Rows that have ended stay in the batch to its end.
    """
    first = 4
    prefix_BN = np.stack([piece[:first] for piece in pieces])
    labeller = Labeller(prefix_BN)
    active = np.ones(len(pieces), dtype=bool)
    cache.add(prefix_BN, labeller.prefix, active)
    logits: list[list[torch.Tensor]] = [[] for _ in pieces]
    for t in range(first, max(map(len, pieces))):
        active = np.array([len(piece) > t for piece in pieces])
        ids = np.array([piece[t] if t < len(piece) else 0 for piece in pieces])
        labels = labeller.advance(ids)
        closing = np.flatnonzero(active & (labels[2] == 0) & (labels[0] > 0))
        cache.close_bar(closing, labels[0][closing] - 1)
        out = cache.add(ids[:, None], labels[:, :, None], active)
        for row in np.flatnonzero(active):
            logits[row].append(out[row].clone())
    return [torch.stack(rows) for rows in logits]


def differ(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def lent(model: MuseFormer, layer: int = 1) -> Injection:
    """All bars of one row, a hole in the next, none in the third."""
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, :5] = mask[1, [0, 3]] = True
    summaries_BSD = torch.randn(3, 6, model.config.width, dtype=torch.float64)
    return Injection(summaries_BSD=summaries_BSD, mask_BS=mask, layer=layer)


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize("rule", [*RULES, CUSTOM])
def test_a_step_of_fixed_shapes_gives_the_logits_of_the_cache(rule, injected: bool) -> None:
    """Rows that end at different times, in room that grows."""
    model, pieces = a_model(rule), some_pieces(3)
    assert len({len(piece) for piece in pieces}) == 3
    injection = lent(model) if injected else None
    graphs = DecodeGraphs(model, least_tokens=LEAST_TOKENS, backend=None)
    fixed = DecodeCache(model, 3, injection, graphs=graphs)
    found = step_by_step(fixed, pieces)
    expected = step_by_step(DecodeCache(model, 3, injection), pieces)
    assert differ(found, expected) < 1e-11
    assert len(graphs.rooms) > 1


def test_a_step_of_fixed_shapes_serves_a_model_without_summaries() -> None:
    model, pieces = a_model("full", summaries=False), some_pieces(2)
    graphs = DecodeGraphs(model, backend=None)
    found = step_by_step(DecodeCache(model, 2, graphs=graphs), pieces)
    assert differ(found, step_by_step(DecodeCache(model, 2), pieces)) < 1e-11
    assert {slots for _, _, slots, _ in graphs.rooms} == {0}


def test_room_doubles_so_that_graphs_are_as_many_as_its_logarithm() -> None:
    model, pieces = a_model(num_layers=1), some_pieces(2, bars=34, players=1)
    longest = max(map(len, pieces))
    graphs = DecodeGraphs(model, least_tokens=LEAST_TOKENS, backend=None)
    step_by_step(DecodeCache(model, 2, graphs=graphs, num_bars=34), pieces)
    num_rooms = 1 + math.ceil(math.log2(longest / LEAST_TOKENS))
    assert graphs.rooms == {(2, 0, 64, LEAST_TOKENS * 2**n) for n in range(num_rooms)}
    assert num_rooms > 4


def test_more_bars_than_were_foretold_find_room() -> None:
    model, pieces = a_model(), some_pieces(1, bars=34, players=1)
    graphs = DecodeGraphs(model, backend=None)
    found = step_by_step(DecodeCache(model, 1, graphs=graphs, num_bars=3), pieces)
    assert differ(found, step_by_step(DecodeCache(model, 1), pieces)) < 1e-11
    assert {slots for _, _, slots, _ in graphs.rooms} == {32, 64}


def test_what_is_dropped_out_of_reach_is_not_read_and_room_stays() -> None:
    model, pieces = a_model(NEAR), some_pieces(2, bars=14)
    graphs = DecodeGraphs(model, least_tokens=64, backend=None)
    cache = DecodeCache(model, 2, graphs=graphs)
    found = step_by_step(cache, pieces)
    assert differ(found, step_by_step(DecodeCache(model, 2), pieces)) < 1e-11
    assert cache.store.num_tokens < min(map(len, pieces)), "it was dropped at all"
    assert len(graphs.rooms) == 1


def test_rows_can_be_left_out_and_turned_round() -> None:
    model, (piece, other) = a_model(), some_pieces(2)
    length = min(len(piece), len(other))
    pieces = np.stack([piece[:length], other[:length]])
    graphs = DecodeGraphs(model, backend=None)
    given, logits = lent(model), []
    two = replace(given, summaries_BSD=given.summaries_BSD[:2], mask_BS=given.mask_BS[:2])
    for cache in (DecodeCache(model, 2, two, graphs=graphs), DecodeCache(model, 2, two)):
        step_by_step(cache, list(pieces[:, :-2]))
        cache.keep(np.array([1, 0]))
        labeller = Labeller(pieces[::-1, :-2])
        active = np.ones(2, dtype=bool)
        labels = labeller.advance(pieces[::-1, -2])
        logits.append(cache.add(pieces[::-1, -2:-1].copy(), labels[:, :, None], active))
    assert torch.allclose(*logits, atol=1e-11, rtol=0)


FREELY = SamplingConfig(top_p=1.0)


def samples_of_lengths(model: MuseFormer, injected: bool, *bars: int) -> list[Sample]:
    controls = [ControlConfig(bars=count, tempo=120, time_signature="4/4") for count in bars]
    rows = lent(model).rows() if injected else [None] * len(bars)
    return [
        Sample(controls=one, injection=row, seed=seed)
        for seed, (one, row) in enumerate(zip(controls, rows, strict=False))
    ]


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_endless_pieces_are_those_of_the_cache(rule: str, injected: bool) -> None:
    """Windows slide, at another time in each row; rows end at different times."""
    model = a_model(rule, max_seq_len=48)
    samples = samples_of_lengths(model, injected, 12, 2)
    graphs = DecodeGraphs(model, least_tokens=LEAST_TOKENS, backend=None)
    found = generate_batch(model, samples, FREELY, endless=True, graphs=graphs)
    expected = generate_batch(model, samples, FREELY, endless=True)
    assert all(map(np.array_equal, found, expected))
    assert len(expected[0]) > 48
    assert {rows for rows, *_ in graphs.rooms} == {2}, "rows that have ended stay"


def test_torch_traces_one_graph_a_room_whatever_the_batch() -> None:
    """Two batches; and a second model in the same process, whose graphs do not count here."""
    for seed in range(2):
        model = a_model(num_layers=1).float()
        graphs = DecodeGraphs(model, least_tokens=LEAST_TOKENS, backend="eager")
        for first in (seed, seed + 2):
            pieces = [a_piece(3, 1, first), a_piece(2, 1, first + 1)]
            found = step_by_step(DecodeCache(model, 2, graphs=graphs), pieces)
            assert differ(found, step_by_step(DecodeCache(model, 2), pieces)) < 1e-5
        assert len(graphs.rooms) == 2
        assert graphs.num_compiled <= 2
        assert seed or graphs.num_compiled == 2


def test_one_graph_more_than_there_are_rooms_is_an_error() -> None:
    """A number in the program that changes from call to call."""
    model = a_model(num_layers=1)
    graphs = DecodeGraphs(model, least_tokens=LEAST_TOKENS, backend="eager")
    cache = DecodeCache(model, 1, graphs=graphs)
    (piece,) = some_pieces(1, bars=1, players=1)
    step_by_step(cache, [piece[:-1]])
    cache._decoder._first_opened = 0
    labels = Labeller(piece[None])
    with pytest.raises(GenerationError, match=r"1 rows with room for 16 tokens.*the 1 declared"):
        cache.add(piece[None, -1:], labels.now[:, :, None], np.ones(1, dtype=bool))


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(GenerationError, match="--compile with --weights_dtype int8"):
        WritingConfig(compile=True, weights_dtype="int8")


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "injected"), [("halves", False), ("museformer", True)])
def test_compiled_pieces_are_those_of_the_cache(rule: str, injected: bool) -> None:
    """Token by token in float32, on a CPU: of these seeds no draw lies within the rounding."""
    model = a_model(rule).float()
    graphs = DecodeGraphs(model, least_tokens=32)
    samples = samples_of_lengths(model, injected, 5, 2)
    found = generate_batch(model, samples, FREELY, graphs=graphs)
    assert all(map(np.array_equal, found, generate_batch(model, samples, FREELY)))
    assert len(graphs.rooms) == graphs.num_compiled == 2
    # Another batch finds its graphs compiled.
    pieces = [a_piece(4, 2, seed=1)[:60], a_piece(3, 2, seed=2)]
    injection = join_rows(lent(model).rows()[:2]) if injected else None
    logits = step_by_step(DecodeCache(model, 2, injection, graphs=graphs), pieces)
    assert differ(logits, step_by_step(DecodeCache(model, 2, injection), pieces)) < 1e-5
    assert len(graphs.rooms) == graphs.num_compiled == 2


_WITHOUT_COMPILER = """
from meloformer.errors import GenerationError
from meloformer.generation.decode_graphs import DecodeGraphs
from tests.generation import test_decode_graphs as tests

model = tests.a_model(num_layers=1)
cache = tests.DecodeCache(model, 1, graphs=DecodeGraphs(model))
try:
    tests.step_by_step(cache, [tests.a_piece(1, 1, 0)])
except GenerationError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_a_compiler_it_says_so_in_one_line(tmp_path: Path) -> None:
    environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_COMPILER],
        env=environment | {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("--compile: torch cannot compile here (")
    assert "leave --compile out" in line


@pytest.mark.gpu
def test_on_a_gpu_replayed_graphs_give_the_logits_of_the_cache() -> None:
    """Through growth, closed bars, injected summaries and two batches."""
    model = a_model().float().cuda()
    graphs = DecodeGraphs(model, least_tokens=32)
    for first in (0, 3):
        pieces = [a_piece(5 - row, 2, seed=first + row) for row in range(3)]
        given = lent(model)
        cache = DecodeCache(model, 3, given, graphs=graphs)
        found = step_by_step(cache, pieces)
        assert differ(found, step_by_step(DecodeCache(model, 3, given), pieces)) < 1e-3
        assert cache._decoder._replay is not None
    assert len(graphs.rooms) == graphs.num_compiled == 3
