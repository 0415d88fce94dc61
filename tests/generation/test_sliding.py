"""Pieces longer than a row of training: windows read like those of training, and nothing leaks."""

import gc
import itertools
import resource
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meloformer.bridge.flow import row_seed
from meloformer.generation.cache import DecodeCache
from meloformer.generation.cache_store import CacheStore
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import Sample, generate, generate_batch, sample_rows
from meloformer.generation.labeller import Labeller
from meloformer.generation.moved_mass import move_mass
from meloformer.generation.sampling import SamplingConfig, sample_tokens
from meloformer.generation.sliding import Context
from meloformer.model import attention
from meloformer.model.injection import Injection
from meloformer.model.masks import RULES, HeadGroup, Rule, num_summaries, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import BOS, EOS, INDEX_OF, KIND_OF, OFFSET, Kind
from meloformer.tokens.windows import bar_starts, cut_tail, cut_window
from tests.layouts import layout_of, tiny_config

MAX_TOKENS = 80
FREELY = SamplingConfig(top_p=1.0)


def a_model(rule: str | Rule = "halves", **changes) -> MuseFormer:
    torch.manual_seed(0)
    settings = {"num_layers": 2, "max_seq_len": MAX_TOKENS, **changes}
    model = MuseFormer(tiny_config(rule=rule, **settings)).eval().double()
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return model


def wishes(bars: int, **more) -> ControlConfig:
    return ControlConfig(bars=bars, tempo=120, time_signature="4/4", **more)


def in_parallel(model: MuseFormer, ids: np.ndarray, injection: Injection | None) -> torch.Tensor:
    """(T, V) logits of all tokens at once."""
    ids = ids.astype(np.int64)
    layout = layout_of(ids)
    if injection is not None:
        extra = layout.bar_BS.shape[1] - injection.mask_BS.shape[1]
        injection = Injection(
            summaries_BSD=F.pad(injection.summaries_BSD, (0, 0, 0, extra)),
            mask_BS=F.pad(injection.mask_BS, (0, extra)),
            strategy=injection.strategy,
            layer=injection.layer,
        )
        num_bars = injection.mask_BS.shape[1] - extra
        layout.piece_BS[:, :num_bars] = 0  # the prefix reads of bars that are not written yet
        layout.bar_BS[:, :num_bars] = torch.arange(num_bars)
        layout = injection.layout(layout)
    plan = attention.build_plan(layout, rule_of(model.config.rule))
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None], layout, plan, injection)[0]


def drawn_again(model: MuseFormer, piece: np.ndarray, sample: Sample) -> tuple[np.ndarray, int]:
    """The piece by full recomputation of every window that was read, and how many there were."""
    generator = torch.Generator().manual_seed(sample.seed)
    num_bars = sample.controls.num_bars
    starts, prefix = bar_starts(piece), sample.controls.prefix()
    context = Context(model.config.max_seq_len, num_bars)
    # Offsets of tokens that were drawn from each window, and the window before the first of them.
    windows: list[tuple[int, int]] = [(len(prefix), 0)]
    for t in range(len(prefix) + 1, len(piece) + 1):
        if piece[t - 1] != EOS and (slide := context.slide(piece[:t])) is not None:
            windows.append((t, context.first_bar))
            is_long = len(bar_starts(slide.ids)) > 3
            assert len(slide.ids) <= model.config.max_seq_len // 2 or not is_long
    grammar = GrammarState(prefix.tolist(), sample.controls.wishes)
    found = prefix.tolist()
    for (start, first), (stop, _) in zip(windows, [*windows[1:], (len(piece), 0)], strict=True):
        # What was read when the last of these was drawn, cut by what training cuts with.
        last = int(np.searchsorted(starts[:-1], stop - 2, side="right"))
        end = len(piece) if last == num_bars else int(starts[last])
        window = cut_window(piece, first, last, starts)
        tail = window[: len(window) - (end - (stop - 1))]
        assert len(tail) <= model.config.max_seq_len or last - first <= 2
        injection = sample.injection
        if injection is not None:
            injection = injection.first_bars(num_bars).later_bars(first)
        logits = in_parallel(model, tail, injection)
        for t in range(start, stop):
            allowed = torch.from_numpy(grammar.allowed())[None]
            uniform = torch.rand((), generator=generator)[None]
            row = logits[len(tail) - (stop - t)][None]
            moved = move_mass(row, allowed)
            found.append(int(sample_tokens(moved, allowed, FREELY, uniform)))
            grammar.advance(found[-1])
    return np.array(found), len(windows)


def lent(width: int, num_bars: int) -> Injection:
    summaries_BSD = torch.randn(1, num_bars, width, dtype=torch.float64)
    return Injection(
        summaries_BSD=summaries_BSD, mask_BS=torch.ones(1, num_bars, dtype=torch.bool), layer=1
    )


@pytest.mark.parametrize("rule", RULES)
def test_an_endless_piece_is_drawn_as_from_windows_of_training_computed_in_full(rule: str) -> None:
    model = a_model(rule)
    sample = Sample(controls=wishes(26), seed=3)
    (piece,) = generate_batch(model, [sample], FREELY, endless=True)
    again, num_windows = drawn_again(model, piece, sample)
    assert num_windows > 2
    assert np.array_equal(piece, again)
    assert decode(piece).num_bars == 26
    (whole,) = generate_batch(model, [sample], FREELY)
    assert not np.array_equal(piece, whole), "the windows are felt at all"


def test_a_window_finds_room_where_the_row_has_dropped_what_is_out_of_reach() -> None:
    """Short bars under a rule of near bars: the window has more tokens than is kept."""
    model = a_model((HeadGroup(False, (0, 1)),))
    bar, note = OFFSET[Kind.BAR], [OFFSET[kind] for kind in Kind if kind >= Kind.INSTRUMENT]
    piece = np.array([BOS, bar, OFFSET[Kind.METRE], OFFSET[Kind.TEMPO], *note, *[bar, *note] * 60])
    end = 9 + 6 * 42 - 1  # six tokens a bar: beyond the room that a cache begins with
    cache, fresh = DecodeCache(model, 1), DecodeCache(model, 1)
    cache.read(piece[:end])
    first = len(bar_starts(piece[:end])) - 9
    window = cut_tail(piece[:end], first, 9)
    assert len(window) > cache.store.num_tokens
    cache.restart(0, window, first)
    fresh.read(window)
    labels = one_more(window, int(piece[end]))
    ids_11, active_1 = np.array([[int(piece[end])]]), np.ones(1, dtype=bool)
    logits = [one.add(ids_11, labels, active_1) for one in (cache, fresh)]
    assert torch.allclose(*logits, atol=1e-10)


def one_more(ids: np.ndarray, token_id: int) -> np.ndarray:
    """(4, 1, 1) labels of a token behind some others, within their last bar."""
    labels = Labeller(ids[None])
    return labels.advance(np.array([token_id]))[:, :, None]


def test_summaries_from_elsewhere_go_along_with_the_windows() -> None:
    """As many as bars, and fewer: later windows are written without."""
    model = a_model(open_summary_rate=0.3)
    controls = wishes(32)
    samples = [
        Sample(controls=controls, injection=lent(model.config.width, num_bars), seed=seed)
        for seed, num_bars in enumerate((32, 6))
    ]
    for sample, piece in zip(
        samples, generate_batch(model, samples, FREELY, endless=True), strict=True
    ):
        again, num_windows = drawn_again(model, piece, sample)
        assert num_windows > 2
        assert np.array_equal(piece, again)


def test_an_endless_piece_is_the_same_alone_and_beside_others() -> None:
    model = a_model()
    samples = [
        Sample(controls=wishes(bars, instruments=players), seed=seed)
        for seed, (bars, players) in enumerate(((12, ()), (2, ()), (9, ("0", "40"))))
    ]
    together = generate_batch(model, samples, FREELY, endless=True)
    alone = [generate_batch(model, [sample], FREELY, endless=True)[0] for sample in samples]
    assert all(map(np.array_equal, together, alone))


def test_a_piece_that_fits_a_row_is_the_same_endless_or_not() -> None:
    model = a_model(max_seq_len=1024).float()
    controls = wishes(3)
    pieces = [
        generate(model, controls, FREELY, num_samples=3, seed=1, endless=endless)
        for endless in (False, True)
    ]
    assert all(map(np.array_equal, *pieces))


def test_wishes_hold_over_all_windows() -> None:
    """Chords go round, players enter, and no bar comes twice, counted over the whole piece."""
    model = a_model()
    asked = ControlConfig(
        bars=24,
        chords=("C", "Am", "G7"),
        instruments=("0", "33"),
        enter=("33:19",),
        notes_per_bar="1-4",
    )
    sampling = SamplingConfig(top_p=1.0, no_repeat_bars=8)
    (piece,) = generate(model, asked, sampling, endless=True)
    starts = bar_starts(piece)
    context, slides = Context(MAX_TOKENS, 24), 0
    for t in range(int(starts[0]) + 1, len(piece)):
        slides += context.slide(array("H", piece[:t].tolist())) is not None
    assert slides > 2
    assert [int(INDEX_OF[piece[t]]) for t in starts[:-1]] == list(asked.wishes.chords) * 8
    bars = [piece[a:b] for a, b in itertools.pairwise(starts)]
    enters = OFFSET[Kind.INSTRUMENT] + 34
    assert next(number for number, bar in enumerate(bars) if enters in bar) == 19
    num_notes = [int((KIND_OF[bar] == Kind.PITCH).sum()) for bar in bars]
    assert all(1 <= count <= 4 for count in num_notes)


def test_the_best_of_endless_pieces_is_the_likeliest_as_it_was_read() -> None:
    model, sampling = a_model(), SamplingConfig(top_p=1.0, best_of=3)
    (best,) = generate(model, wishes(24), sampling, endless=True)
    candidates = [
        Sample(controls=wishes(24), seed=row_seed(0, number, 1) if number else 0)
        for number in range(3)
    ]
    rows = sample_rows(model, candidates, sampling, endless=True)
    likeliest = min(rows, key=lambda row: row.nats / (KIND_OF[row.piece()] == Kind.PITCH).sum())
    assert np.array_equal(best, likeliest.piece())
    assert all(row.context.first_bar > 0 for row in rows)


def slides_of(piece: np.ndarray, num_bars: int) -> list[np.ndarray]:
    """Windows of a piece that grows token by token; nothing but them is ever read."""
    context, windows = Context(MAX_TOKENS, num_bars), []
    num_read = prefix = int(bar_starts(piece)[0])
    num_bars_read = 0
    for t in range(prefix, len(piece)):
        slide = context.slide(piece[: t + 1])
        if slide is not None:
            windows.append(slide.ids)
            num_read, num_bars_read = len(slide.ids), len(bar_starts(slide.ids)) - 1
        num_read += 1
        num_bars_read += int(KIND_OF[piece[t]] == Kind.BAR)
        has_long_bar = num_bars_read <= 2
        assert num_read <= MAX_TOKENS or has_long_bar
        assert num_bars_read <= num_summaries(MAX_TOKENS)
    return windows


def test_no_window_has_more_bars_than_a_row_of_training() -> None:
    bars = piece_of_bars([0] * 400)
    windows = slides_of(bars, 400)
    assert len(windows) > 4
    for window in windows:
        assert len(bar_starts(window)) - 1 <= num_summaries(MAX_TOKENS) // 2
        GrammarState(window.tolist())


def test_a_bar_longer_than_a_row_is_read_to_its_end() -> None:
    piece = piece_of_bars([3, 3, 70, 3, 70, 70, 3])
    windows = slides_of(piece, 7)
    for window in windows:
        GrammarState(window.tolist())
    longest = max(np.diff(bar_starts(piece)))
    assert longest > MAX_TOKENS > 2 * min(map(len, windows))


def piece_of_bars(num_notes: Sequence[int]) -> np.ndarray:
    """A piece without its EOS; its bars have so many notes of one player at one onset."""
    ids = ControlConfig(bars=len(num_notes)).prefix().tolist()
    for number, count in enumerate(num_notes):
        ids.append(OFFSET[Kind.BAR] + number % 85)
        if number == 0:
            ids += [OFFSET[Kind.METRE], OFFSET[Kind.TEMPO]]
        if count:
            ids += [OFFSET[Kind.INSTRUMENT] + 1, OFFSET[Kind.ONSET], OFFSET[Kind.PITCH]]
            ids += [OFFSET[Kind.DURATION], OFFSET[Kind.VELOCITY]]
            for note in range(1, count):
                ids += [OFFSET[Kind.PITCH] + note, OFFSET[Kind.VELOCITY] + note % 2]
    GrammarState(ids)
    return np.array(ids, dtype=np.uint16)


@pytest.mark.slow
def test_memory_is_flat_from_bar_500_to_bar_2000() -> None:
    """Of the whole process, and the caches' own bytes, which other parts of it cannot hide."""
    torch.manual_seed(0)
    config = tiny_config(width=32, ffn_width=64, num_layers=1, max_seq_len=512)
    model = MuseFormer(config).eval()
    bytes_of_cache: list[tuple[int, int]] = []
    resident: list[int] = []

    def look(num_tokens: int) -> None:
        if num_tokens % 50 == 0:
            caches = [one for one in gc.get_objects() if type(one) is CacheStore]
            bytes_of_cache.append((num_tokens, sum(cache.num_bytes for cache in caches)))
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * resource.getpagesize())

    controls = wishes(2000)
    (piece,) = generate(model, controls, FREELY, endless=True, on_token=look)
    starts = bar_starts(piece)
    assert len(starts) == 2001
    early, late = (
        max(b for t, b in bytes_of_cache if starts[first] <= t < starts[last])
        for first, last in ((100, 500), (500, 2000))
    )
    assert late <= early
    before = [r for (t, _), r in zip(bytes_of_cache, resident, strict=True) if t < starts[500]]
    assert max(resident) - max(before) < 4 << 20
