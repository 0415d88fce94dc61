"""The arena: the same music for all, honest sums, and a run from shards to a table."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from launch.tools.arena import Flags, arena
from meloformer.benchmarks import arena_miditok
from meloformer.benchmarks.arena import SYSTEMS, Arena, ArenaConfig
from meloformer.benchmarks.arena_pieces import Excerpts, batches, cut
from meloformer.benchmarks.arena_results import minutes
from meloformer.benchmarks.arena_systems import MuseFormerSystem, pack
from meloformer.benchmarks.arena_training import Budget
from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.midi.grid import METRE_INDEX, TEMPOS_BPM
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import CONTINUE, KIND_OF, VOCAB_SIZE, Kind
from tests.tokens.pieces import notes_of_bars, piece_of

needs_miditok = pytest.mark.skipif(
    arena_miditok.find_spec("miditok") is None, reason="needs the extra bench"
)
SHORT = ArenaConfig(
    notes=300,
    notes_per_batch=150,
    max_seq_len=512,
    learning_rates=(3e-3,),
    train_pieces=4,
    test_pieces=2,
    num_samples=2,
    bars=2,
    device="cpu",
)


def a_ring(shards, **changes) -> Arena:
    return Arena(replace(SHORT, data=str(shards), **changes))


@pytest.fixture(scope="module")
def excerpts(chorale_shards) -> Excerpts:
    return Excerpts(ShardFolder.open(chorale_shards).split("train"), range(5), max_tokens=512)


def test_excerpts_hold_every_note_once_and_end_with_a_bar_that_sounds(
    excerpts, chorale_shards
) -> None:
    index = ShardFolder.open(chorale_shards).split("train")
    assert len(excerpts) > 5 and excerpts.notes_left_out == 0
    for piece in range(5):
        music = decode(index.read(piece))
        mine = [n for n, place in enumerate(excerpts.places) if place.piece == piece]
        assert sum(excerpts[n].num_notes for n in mine) == music.num_notes
        for n in mine:
            place, excerpt = excerpts.places[n], excerpts[n]
            assert excerpt.music == notes_of_bars(music, place.first, place.last)
            assert excerpt.music.bar.max() == place.last - place.first - 1
            assert excerpt.num_notes == place.num_notes
            assert (excerpt.ids[0] == CONTINUE) == (not excerpt.starts) == (place.first > 0)
            assert excerpt.ends == (place.last == music.num_bars)
    totals = excerpts.piece_totals([place.num_notes for place in excerpts.places])
    assert totals.tolist() == [decode(index.read(piece)).num_notes for piece in range(5)]


def test_a_prefix_says_the_bars_that_remain_and_nothing_else(excerpts) -> None:
    for number in range(len(excerpts)):
        assert KIND_OF[excerpts[number].ids[:3]].tolist() == [Kind.CONTROL, Kind.LENGTH, Kind.BAR]


def test_a_bar_that_fits_no_row_is_left_out_and_counted(chorale_shards) -> None:
    index = ShardFolder.open(chorale_shards).split("train")
    found = Excerpts(index, range(5), max_tokens=80)
    whole = sum(decode(index.read(piece)).num_notes for piece in range(5))
    assert 0 < found.notes_left_out == whole - found.num_notes
    assert cut(np.array([50, 9, 9]), np.array([True, True, False]), 40, 8) == [(1, 2)]
    with pytest.raises(ConfigError, match="allowed: a larger --max_seq_len"):
        Excerpts(index, range(1), max_tokens=10)


def test_an_epoch_of_batches_holds_every_excerpt_once_in_a_seeded_order(excerpts) -> None:
    def epoch(seed: int) -> list[list[int]]:
        stream, found = batches(excerpts, 200, seed), []
        while sum(map(len, found)) < len(excerpts):
            found.append(next(stream))
        return found

    first = epoch(0)
    assert sorted(itertools.chain(*first)) == list(range(len(excerpts)))
    assert first == epoch(0) != epoch(1)
    for numbers in first:
        notes = sum(excerpts.places[n].num_notes for n in numbers)
        assert notes <= 200 or len(numbers) == 1


def test_a_budget_ends_with_whatever_is_used_up_first() -> None:
    assert Budget(seconds=10).share(5, 10**9) == 0.5
    assert Budget(notes=100).share(10**9, 25) == 0.25
    assert Budget(seconds=10, notes=100).share(5, 90) == 0.9


def test_minutes_are_those_of_the_bars_up_to_the_last_note() -> None:
    at_60, at_120 = (int(np.flatnonzero(bpm == TEMPOS_BPM)[0]) for bpm in (60, 120))
    music = piece_of([METRE_INDEX[4, 4]] * 2, [at_60, at_120], [(1, 1, 0, 60, 24, 66)])
    assert minutes(music) == pytest.approx((4 / 60) + (4 / 120))
    longer = piece_of([METRE_INDEX[4, 4]] * 3, [at_60, at_120, at_60], [(1, 1, 0, 60, 24, 66)])
    assert minutes(longer) == minutes(music)


def test_museformer_without_weights_spends_log_v_on_every_token_but_the_first(
    chorale_shards,
) -> None:
    ring = a_ring(chorale_shards, systems=("museformer",))
    system = ring._system("museformer", 0)
    torch.nn.init.zeros_(system.model.token_embedding.weight)
    num_tokens = sum(len(ring.test[n].ids) - 1 for n in range(len(ring.test)))
    nats = ring.excerpt_nats(system, ring.test)
    assert nats.sum() == pytest.approx(num_tokens * math.log(VOCAB_SIZE), rel=1e-5)


def test_packed_rows_give_every_excerpt_the_nats_that_it_has_alone(chorale_shards) -> None:
    """As rows are on a GPU, by the dense rule."""
    ring = a_ring(chorale_shards, systems=("museformer",))
    system = ring._system("museformer", 0)
    assert isinstance(system, MuseFormerSystem)
    given = [ring.test[n] for n in range(len(ring.test))]
    (alone,) = system.prepare(given)
    system._backend, system._max_tokens = "flex", 1024  # how rows are laid
    packed = system.prepare(given)
    system._backend = "dense"  # how they are computed
    found = np.zeros(len(given))
    with torch.no_grad():
        expected = system.nats(alone).numpy()
        for batch in packed:
            found[list(batch.excerpts)] = system.nats(batch).numpy()
    assert any(len(batch.excerpts) > 1 for batch in packed)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert sum(batch.num_targets for batch in packed) == alone.num_targets
    rows = pack([excerpt.ids for excerpt in given], 1024)
    assert sorted(itertools.chain(*rows)) == list(range(len(given)))


@needs_miditok
def test_all_systems_get_the_same_music_and_nearly_as_many_parameters(chorale_shards) -> None:
    ring = a_ring(chorale_shards)
    systems = [ring._system(name, 0) for name in SYSTEMS]
    for number in range(len(ring.test)):
        excerpt = ring.test[number]
        assert all(system.round_trip(excerpt) == excerpt.music for system in systems)
    counts = [system.num_parameters for system in systems]
    assert max(counts) / min(counts) < 1.02
    for system in systems[1:]:  # MuseFormer's ids may be longer than its targets by the prefix
        (batch,) = system.prepare([ring.test[0]])
        assert batch.inputs[0].shape[1] <= 512


@needs_miditok
def test_a_uniform_octuple_spends_every_field_of_every_note_and_one_on_the_end(
    chorale_shards,
) -> None:
    ring = a_ring(chorale_shards, systems=("octuple",))
    system = ring._system("octuple", 0)
    for embedding in system.model.embeddings:
        torch.nn.init.zeros_(embedding.weight)
    sizes = system.encoding.vocab_sizes
    excerpts = [ring.test[n] for n in range(len(ring.test))]
    expected = [
        one.num_notes * sum(map(math.log, sizes)) + one.ends * math.log(sizes[0])
        for one in excerpts
    ]
    np.testing.assert_allclose(ring.excerpt_nats(system, ring.test), expected, rtol=1e-5)


def run(shards, path, *more: str) -> dict:
    flags = f"--data {shards} --notes_per_batch 150 --max_seq_len 512 --train_pieces 4 --bars 2"
    flags += f" --test_pieces 2 --systems museformer,octuple --device cpu --json {path}"
    with pytest.raises(SystemExit) as ending:
        run_recipe(arena, Flags, [*flags.split(), *more])
    assert ending.value.code == 0
    return json.loads(path.read_text())


@needs_miditok
def test_a_run_trains_all_on_the_same_notes_and_ends_with_a_table_and_figures(
    chorale_shards, tmp_path, capsys
) -> None:
    one_of_each = ("--notes", "150", "--learning_rates", "3e-3", "--num_samples", "1")
    found = run(chorale_shards, tmp_path / "arena.json", *one_of_each)
    said = capsys.readouterr().out
    assert "150 notes each" in said and "nats per note" in said and "held-out, by chance" in said
    assert found["settings"]["data"] == chorale_shards.name, "no path of this machine"
    ours, theirs = found["systems"]["museformer"], found["systems"]["octuple"]
    (one,), (other,) = ours["seeds"], theirs["seeds"]
    assert one["notes"] == other["notes"] >= 150 and one["steps"] == other["steps"]
    assert ours["decodes"]["mean"] == 1 and ours["notes_lost"] == theirs["notes_lost"] == 0
    assert len(one["piece_nats"]) == found["held_out"]["pieces"] == 2
    overall = sum(one["piece_nats"]) / found["held_out"]["notes"]
    assert ours["nats_per_note_of_all_notes"] == pytest.approx(overall)
    low, mean, high = (ours["nats_per_note"][name] for name in ("low", "mean", "high"))
    assert low <= mean <= high


@needs_miditok
@pytest.mark.slow
def test_each_system_takes_the_rate_that_its_first_seed_validates_best(
    chorale_shards, tmp_path, capsys
) -> None:
    more = ("--minutes", "0.02", "--learning_rates", "1e-5", "3e-3", "--seeds", "2")
    found = run(chorale_shards, tmp_path / "arena.json", *more)
    said = capsys.readouterr().out
    assert "0.02 minutes each" in said and "octuple with learning rate 0.003" in said
    for system in found["systems"].values():
        assert [seed["learning_rate"] for seed in system["seeds"]] == [3e-3, 3e-3]
        assert all(1.2 <= seed["seconds"] < 5 for seed in system["seeds"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 0}, "--minutes 0: allowed: above 0"),
        ({"notes": 0}, "--notes 0: allowed: 1 or more"),
        ({"systems": ("bpe",)}, "--systems bpe: allowed: museformer, remi"),
        ({"systems": ("remi,remi",)}, "remi twice"),
        ({"systems": ()}, "found none"),
        ({"learning_rates": ()}, "--learning_rates: found none"),
        ({"max_seq_len": 500}, "--max_seq_len 500: allowed: multiples"),
        ({"warmup_share": 1.0}, "--warmup_share 1.0: allowed"),
    ],
)
def test_flags_that_make_no_arena_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SHORT, **changes)
