"""The arena: decoders over several tokenisations, trained alike and judged on the same notes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from meloformer.batches.phases import BatchShape
from meloformer.benchmarks.alternation import own_clock
from meloformer.benchmarks.arena_miditok import Encoding, MidiTokEncoding
from meloformer.benchmarks.arena_pieces import Excerpts, beginning
from meloformer.benchmarks.arena_results import (
    Report,
    SeedResult,
    SystemResult,
    num_bars_kept,
    num_notes_kept,
)
from meloformer.benchmarks.arena_systems import DecoderSystem, MuseFormerSystem, System
from meloformer.benchmarks.arena_training import Budget, Trainee, train_in_turns
from meloformer.benchmarks.bench_models import sized_config
from meloformer.benchmarks.mixed_training import UNGIVEN_SIZES
from meloformer.command_line import check_above_zero, check_at_least, ungiven
from meloformer.errors import ConfigError
from meloformer.generation.sampling import SamplingConfig
from meloformer.model.counts import num_parameters
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.masks import BLOCK_SIZE, num_summaries
from meloformer.shards.reader import ShardFolder, SplitIndex
from meloformer.training.config import ModelSize, newest_shards
from meloformer.training.graphs import Shapes, limit_graphs
from meloformer.training.schedule import ScheduleConfig

# MidiTok's tokenisation, and whether the heads of a note read each other.
BASELINES: dict[str, tuple[Encoding, bool]] = {
    "remi": ("remi", False),
    "octuple": ("octuple", False),
    "octuple_chained": ("octuple", True),
}
SYSTEMS = (MuseFormerSystem.name, *BASELINES)

# How far apart systems may be in parameters.
MOST_APART = 0.02
_NUM_TURNS = 20

UNGIVEN = {
    "cuda": UNGIVEN_SIZES["cuda"] | {"notes_per_batch": 8192},
    "cpu": UNGIVEN_SIZES["cpu"] | {"notes_per_batch": 512},
}


@dataclass(frozen=True, kw_only=True)
class ArenaConfig:
    """Flags of launch/tools/arena.py.

    Args:
        data: shard folder; the newest of data_shards/ if not given.
        minutes: of training, of each system and seed, on its own clock: seconds of this process's
            CPU, or of the GPU.
        notes: of training excerpts instead, as many for each system and seed, over all epochs.
        seeds: runs of each system, each with its own first weights and order of excerpts.
        systems: museformer, remi, octuple, octuple_chained; the others are held against the first.
        model_size: of MuseFormer, and what the others come close to; small on CUDA and tiny
            elsewhere if not given.
        max_seq_len: tokens of a row: excerpts are as long as the costliest system's row takes;
            longer on CUDA than elsewhere if not given.
        notes_per_batch: of an optimizer step; more on CUDA than elsewhere if not given.
        learning_rates: the highest ones to try; each system takes that with which its first seed
            is best on the validation split.
        warmup_share: of the budget, in which the rate rises; then it falls on a cosine to a tenth.
        train_pieces: only the first so many of the training split.
        test_pieces: at most so many of the test split, spread evenly; of validation likewise.
        num_samples: pieces that each system writes with each seed, side by side.
        bars: of each of them, at most.
        device: where to compute.
        sampling: how bold the choice of a token is, the same for all.
    """

    data: str | None = None
    minutes: float = 10.0
    notes: int | None = None
    seeds: int = 1
    systems: tuple[str, ...] = SYSTEMS
    model_size: ModelSize | None = None
    max_seq_len: int | None = None
    notes_per_batch: int | None = None
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)
    warmup_share: float = 0.05
    train_pieces: int | None = None
    test_pieces: int = 64
    num_samples: int = 16
    bars: int = 16
    device: DeviceName = "auto"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        lowest = {
            "notes": 1,
            "seeds": 1,
            "max_seq_len": 256,
            "notes_per_batch": 1,
            "train_pieces": 1,
            "test_pieces": 1,
            "num_samples": 1,
            "bars": 2,
        }
        check_at_least(self, lowest)
        check_above_zero(self, "minutes")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"--warmup_share {self.warmup_share}: allowed: 0 up to below 1")
        if self.max_seq_len is not None and self.max_seq_len % BLOCK_SIZE:
            raise ConfigError(
                f"--max_seq_len {self.max_seq_len}: allowed: multiples of {BLOCK_SIZE}"
            )
        if not self.learning_rates:
            raise ConfigError("--learning_rates: found none; allowed: one or more above 0")
        for rate in self.learning_rates:
            ScheduleConfig(learning_rate=rate)  # refuses a rate that is none
        if not self.names:
            raise ConfigError(f"--systems: found none; allowed: {', '.join(SYSTEMS)}")
        for name in self.names:
            if name not in SYSTEMS:
                raise ConfigError(f"--systems {name}: allowed: {', '.join(SYSTEMS)}")
            if self.names.count(name) > 1:
                raise ConfigError(f"--systems: found {name} twice, allowed: each once")

    @property
    def names(self) -> list[str]:
        """Of the systems; commas or spaces between them."""
        return [part for given in self.systems for part in given.split(",") if part]

    @property
    def budget(self) -> Budget:
        """Of each system and seed."""
        if self.notes is not None:
            return Budget(notes=self.notes)
        return Budget(seconds=60 * self.minutes)

    @property
    def budget_in_words(self) -> str:
        """Which of the two it is."""
        if self.notes is not None:
            return f"{self.notes:,} notes each"
        return f"{self.minutes:g} minutes each"


class Arena:
    """All systems with all seeds, ready to train.

    Args:
        config: flags.

    Raises:
        ConfigError: MidiTok is missing, a system cannot be as large as MuseFormer, or there is
            nothing to train on or to judge by.
        ShardError: the data are no shards.
    """

    def __init__(self, config: ArenaConfig) -> None:
        device_type = choose_device(config.device)
        self.config = replace(
            config,
            data=config.data or str(newest_shards()),
            **ungiven(config, UNGIVEN, device_type),
        )
        self.device = torch.device(device_type)
        assert self.config.data is not None and self.config.max_seq_len is not None
        assert self.config.model_size is not None
        shards = ShardFolder.open(self.config.data)
        train, valid, test = (shards.split(name) for name in ("train", "valid", "test"))
        num_train = min(train.num_pieces, self.config.train_pieces or train.num_pieces)
        judged = _spread(test, self.config.test_pieces)
        row = self.config.max_seq_len
        self.train = Excerpts(train, range(num_train), row)
        self.valid = Excerpts(valid, _spread(valid, self.config.test_pieces), row)
        self.test = Excerpts(test, judged, row)
        self.reference = [beginning(test, piece, self.config.bars) for piece in judged]

        # Open summaries serve texts, which no other system reads: it trains without them.
        self.model = replace(
            sized_config(self.config.model_size, self.config.max_seq_len), open_summary_rate=0.0
        )
        metres = self.train.metres | self.valid.metres | self.test.metres
        max_bars = max(split.max_bars for split in (self.train, self.valid, self.test))
        self._encodings = {
            kind: MidiTokEncoding(kind, metres, max_bars)
            for kind in dict.fromkeys(BASELINES[n][0] for n in self.config.names if n in BASELINES)
        }
        systems = [self._system(name, 0) for name in self.config.names]
        for system in systems:
            apart = abs(system.num_parameters / num_parameters(self.model) - 1)
            if apart > MOST_APART:
                raise ConfigError(
                    f"{system.name} has {system.num_parameters:,} parameters and MuseFormer "
                    f"{num_parameters(self.model):,}: allowed: {MOST_APART:.0%} apart; take "
                    "another --model_size"
                )
        if self.device.type == "cuda":
            self._limit_graphs(systems)

    def run(self, say: Callable[[str], None]) -> Report:
        """Train, score, write and compare.

        Args:
            say: is told how far it is, a line each.
        """
        results: dict[str, list[SeedResult]] = {name: [] for name in self.config.names}
        rates = {name: self.config.learning_rates for name in self.config.names}
        for seed in range(self.config.seeds):
            trainees = [
                self._trainee(self._system(name, seed), rate, seed)
                for name in self.config.names
                for rate in rates[name]
            ]
            for turn in train_in_turns(trainees, _NUM_TURNS):
                say(f"seed {seed}, {(turn + 1) / _NUM_TURNS:.0%}: {', '.join(map(str, trainees))}")
            best = self._best(trainees, say)
            rates = {name: (trainee.peak,) for name, trainee in best.items()}
            for name, trainee in best.items():
                results[name].append(self._judge(trainee, seed))
                say(f"seed {seed}: {name} judged")
        systems = {name: self._result(self._system(name, 0), results[name]) for name in results}
        notes = self.test.piece_totals([place.num_notes for place in self.test.places])
        return Report(systems, notes, self.reference, self.config.bars)

    def _best(self, trainees: Sequence[Trainee], say: Callable[[str], None]) -> dict[str, Trainee]:
        """Of each system the one with the best rate."""
        best: dict[str, tuple[float, Trainee]] = {}
        for trainee in trainees:
            name, nats = trainee.system.name, 0.0
            if len(trainees) > len(self.config.names):
                valid = self.valid
                nats = self.excerpt_nats(trainee.system, valid).sum() / valid.num_notes
                say(f"{name} with learning rate {trainee.peak:g}: {nats:.3f} on validation")
            if name not in best or nats < best[name][0]:
                best[name] = nats, trainee
        return {name: trainee for name, (_, trainee) in best.items()}

    def describe(self) -> str:
        """What everybody trains on and is judged by, a line."""
        return (
            f"{self.train.num_notes:,} notes in {len(self.train):,} excerpts to train on "
            f"({self.train.notes_left_out:,} left out), {self.test.num_notes:,} in "
            f"{len(self.test):,} of {len(self.reference)} pieces to judge by "
            f"({self.test.notes_left_out:,} left out)"
        )

    def facts(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "train": {
                "notes": self.train.num_notes,
                "excerpts": len(self.train),
                "notes_left_out": self.train.notes_left_out,
            },
            "test_excerpts": len(self.test),
            "test_notes_left_out": self.test.notes_left_out,
        }

    def _system(self, name: str, seed: int) -> System:
        assert self.config.max_seq_len is not None
        if name == MuseFormerSystem.name:
            return MuseFormerSystem(self.model, self.device, seed, self.config.max_seq_len)
        kind, chained = BASELINES[name]
        return DecoderSystem(
            name,
            self._encodings[kind],
            self.model,
            num_parameters(self.model),
            chained=chained,
            device=self.device,
            seed=seed,
            max_tokens=self.config.max_seq_len,
        )

    def _trainee(self, system: System, rate: float, seed: int) -> Trainee:
        assert self.config.notes_per_batch is not None
        return Trainee(
            system,
            self.train,
            self.config.budget,
            notes_per_batch=self.config.notes_per_batch,
            peak=rate,
            warmup_share=self.config.warmup_share,
            seed=seed,
            device=self.device,
        )

    def _judge(self, trainee: Trainee, seed: int) -> SeedResult:
        system = trainee.system
        piece_nats = self.test.piece_totals(self.excerpt_nats(system, self.test))
        with torch.no_grad():
            began = own_clock(self.device)
            written = system.generate(
                self.config.num_samples, self.config.bars, self.config.sampling, seed
            )
            writing_seconds = own_clock(self.device) - began
        return SeedResult(
            learning_rate=trainee.peak,
            steps=trainee.steps,
            notes=trainee.notes,
            targets=trainee.targets,
            seconds=trainee.seconds,
            piece_nats=piece_nats,
            written=written,
            writing_seconds=writing_seconds,
        )

    @torch.no_grad()
    def excerpt_nats(self, system: System, excerpts: Excerpts) -> np.ndarray:
        """(N,) nats of every excerpt."""
        assert self.config.notes_per_batch is not None
        found = np.zeros(len(excerpts))
        system.model.eval()
        for numbers in excerpts.by_size(self.config.notes_per_batch):
            for batch in system.prepare([excerpts[number] for number in numbers]):
                places = [numbers[place] for place in batch.excerpts]
                found[places] = system.nats(batch).double().cpu().numpy()
        return found

    def _result(self, system: System, seeds: Sequence[SeedResult]) -> SystemResult:
        excerpts = [self.test[number] for number in range(len(self.test))]
        back = [system.round_trip(excerpt) for excerpt in excerpts]
        pairs = list(zip((excerpt.music for excerpt in excerpts), back, strict=True))
        kept = sum(num_notes_kept(*pair) for pair in pairs)
        num_bars = sum(music.num_bars for music, _ in pairs)
        return SystemResult(
            num_parameters=system.num_parameters,
            settings=system.settings,
            notes_lost=1 - kept / self.test.num_notes,
            bars_changed=1 - sum(num_bars_kept(*pair) for pair in pairs) / num_bars,
            seeds=seeds,
        )

    def _limit_graphs(self, systems: Sequence[System]) -> None:
        """What MuseFormer's attention may compile: rows of one shape, trained and scored."""
        system = next((s for s in systems if isinstance(s, MuseFormerSystem)), None)
        if system is None:
            return
        assert self.config.max_seq_len is not None
        T = self.config.max_seq_len
        shape = BatchShape(1, T, num_summaries(T))
        limit_graphs(system.num_graphs(Shapes(train=(shape,), score=(shape,))))


def _spread(index: SplitIndex, num_pieces: int) -> list[int]:
    """At most so many of a split, evenly."""
    taken = min(index.num_pieces, num_pieces)
    return [place * index.num_pieces // taken for place in range(taken)]
