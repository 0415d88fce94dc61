"""The systems of the arena behind one face: excerpts in, nats and music out."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from meloformer.batches.batch import IGNORE_INDEX, Batch
from meloformer.batches.collate import collate_rows
from meloformer.batches.rows import best_fit
from meloformer.batches.windows import Windows
from meloformer.benchmarks.arena_decoder import Decoder, as_large_as
from meloformer.benchmarks.arena_miditok import EOS, PAD, MidiTokEncoding
from meloformer.benchmarks.arena_pieces import Excerpt
from meloformer.benchmarks.arena_sampling import sample_decoder
from meloformer.benchmarks.bench_models import build_model, num_graphs
from meloformer.evaluation.likelihood import row_length
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.attention import build_plan
from meloformer.model.config import MuseFormerConfig
from meloformer.model.masks import num_summaries, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.model.precision import attention_dtype
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import KIND_OF, Kind
from meloformer.training.config import fuses
from meloformer.training.graphs import Shapes
from meloformer.training.loss import token_nats
from meloformer.training.prepare import backend_of


@dataclass(frozen=True, eq=False, kw_only=True)
class MicroBatch:
    """Some excerpts as a system reads them.

    Args:
        inputs: its tensors.
        excerpts: which of the given excerpts these are, in the order of their nats.
        num_targets: that count in the loss; a note of several fields has several.
    """

    inputs: Any
    excerpts: tuple[int, ...]
    num_targets: int


class System(ABC):
    """A tokenisation with its model.

    Attributes:
        name: in tables.
        master: the weights in float32, on the device.
        model: what computes: `master` itself, or a copy in another precision.
    """

    name: str
    master: nn.Module
    model: nn.Module

    @abstractmethod
    def prepare(self, excerpts: Sequence[Excerpt]) -> list[MicroBatch]:
        """Tokens and labels, on the CPU: what data workers do in a run."""

    @abstractmethod
    def nats(self, batch: MicroBatch) -> Tensor:
        """(N,) nats of all tokens of each excerpt but the first, BOS or CONTINUE."""

    @abstractmethod
    def generate(
        self, num_samples: int, num_bars: int, sampling: SamplingConfig, seed: int
    ) -> list[QuantisedPiece | None]:
        """Pieces of at most so many bars, from nothing; None is one that does not decode."""

    @abstractmethod
    def round_trip(self, excerpt: Excerpt) -> QuantisedPiece | None:
        """What its tokens say of an excerpt."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What it is, as JSON holds it."""

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.master.parameters())

    def place(self, master: nn.Module, model: nn.Module) -> None:
        """Take weights that have been moved to the device."""
        self.master, self.model = master, model


class MuseFormerSystem(System):
    """HID tokens and MuseFormer, by the project's own collation, attention, loss and generation.

    Args:
        config: the model.
        device: where it will run.
        seed: of its weights.
        max_tokens: of a row, where rows are packed.
    """

    name = "museformer"

    def __init__(
        self, config: MuseFormerConfig, device: torch.device, seed: int, max_tokens: int
    ) -> None:
        self.config, self._device = config, device
        self._rule, self._backend = rule_of(config.rule), backend_of(device)
        self._fuse = fuses("auto", self._backend, zero_stage=0)
        self._max_tokens = max_tokens
        self._precision = attention_dtype("auto", device, head_width=config.head_width)
        model = build_model(config, fuse=self._fuse, seed=seed)
        self.place(model, model)

    def prepare(self, excerpts: Sequence[Excerpt]) -> list[MicroBatch]:
        """One row an excerpt where all pairs are computed anyway; where attention is sparse and
        compiled for a shape, full rows of several, one at a time.
        """
        sequences = [excerpt.ids for excerpt in excerpts]
        if self._backend == "dense":
            batch = collate_rows([[ids] for ids in sequences], row_length(sequences))
            return [self._micro_batch(batch, tuple(range(len(excerpts))), [1] * len(excerpts))]
        found = []
        for row in pack(sequences, self._max_tokens):
            batch = collate_rows([[sequences[n] for n in row]], self._max_tokens, self._rule)
            found.append(self._micro_batch(batch, tuple(row), [len(row)]))
        return found

    def nats(self, batch: MicroBatch) -> Tensor:
        moved, first_of_row = batch.inputs
        moved = moved.to(self._device)
        plan = build_plan(moved.layout, self._rule, self._backend, moved.blocks, self._precision)
        logits_BTV = self.model(moved.ids_BT, moved.layout, plan)
        nats_BT = token_nats(
            logits_BTV, moved.targets_BT, fuse=self._fuse and logits_BTV.requires_grad
        )
        excerpt_BT = moved.layout.piece_BT + first_of_row.to(self._device)[:, None]
        is_real_BT = moved.layout.piece_BT >= 0
        nats_N = nats_BT.new_zeros(len(batch.excerpts))
        return nats_N.index_add(0, excerpt_BT[is_real_BT], nats_BT[is_real_BT])

    def generate(
        self, num_samples: int, num_bars: int, sampling: SamplingConfig, seed: int
    ) -> list[QuantisedPiece | None]:
        assert isinstance(self.model, MuseFormer)
        controls = ControlConfig(bars=num_bars)
        written = generate(self.model, controls, sampling, num_samples=num_samples, seed=seed)
        return [decode(ids) for ids in written]

    def round_trip(self, excerpt: Excerpt) -> QuantisedPiece | None:
        return decode(excerpt.ids)

    @property
    def settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "tokens": "HID",
            "layers": config.num_layers,
            "width": config.width,
            "heads": config.num_heads,
            "ffn_width": config.ffn_width,
            "rule": str(config.rule),
            "backend": self._backend,
        }

    def num_graphs(self, shapes: Shapes) -> int:
        """Graphs that it may compile for rows of some shapes."""
        return num_graphs(self.config, shapes, self._backend, fuse=self._fuse)

    @staticmethod
    def _micro_batch(batch: Batch, excerpts: tuple[int, ...], per_row: list[int]) -> MicroBatch:
        first_of_row = torch.tensor(np.cumsum([0, *per_row[:-1]]))
        return MicroBatch(
            inputs=(batch, first_of_row), excerpts=excerpts, num_targets=batch.num_targets
        )


def pack(sequences: Sequence[np.ndarray], max_tokens: int) -> list[list[int]]:
    """Numbers of the sequences that share each row."""
    tokens = np.array([len(ids) for ids in sequences])
    bars = np.array([int((KIND_OF[ids] == Kind.BAR).sum()) for ids in sequences])
    windows = Windows.whole(np.arange(len(sequences)), tokens, bars)
    placed, edges = best_fit(windows, max_tokens, num_summaries(max_tokens))
    return [placed.piece[first:last].tolist() for first, last in itertools.pairwise(edges.tolist())]


class DecoderSystem(System):
    """One of MidiTok's tokenisations and a plain decoder of as many parameters.

    Args:
        name: in tables.
        encoding: of its tokens.
        config: of the MuseFormer that it is held against.
        num_parameters: of that one.
        chained: see `arena_decoder.DecoderConfig`.
        device: where it will run.
        seed: of its weights.
        max_tokens: of a row.
    """

    def __init__(
        self,
        name: str,
        encoding: MidiTokEncoding,
        config: MuseFormerConfig,
        num_parameters: int,
        *,
        chained: bool,
        device: torch.device,
        seed: int,
        max_tokens: int,
    ) -> None:
        self.name, self.encoding = name, encoding
        self._device, self._max_tokens = device, max_tokens
        self.config = as_large_as(config, num_parameters, encoding.vocab_sizes, chained)
        torch.manual_seed(seed)
        model = Decoder(self.config)
        self.place(model, model)

    def prepare(self, excerpts: Sequence[Excerpt]) -> list[MicroBatch]:
        sequences = [
            self.encoding.encode(excerpt.music, starts=excerpt.starts, ends=excerpt.ends)
            for excerpt in excerpts
        ]
        longest = max(map(len, sequences)) - 1
        shape = (len(sequences), longest, len(self.encoding.vocab_sizes))
        ids, targets = np.full(shape, PAD), np.full(shape, IGNORE_INDEX)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence) - 1] = sequence[:-1]
            targets[row, : len(sequence) - 1] = sequence[1:]
        # Where the first field says that the piece is over, there is nothing else to say.
        targets[..., 1:][targets[..., 0] == EOS] = IGNORE_INDEX
        return [
            MicroBatch(
                inputs=(torch.from_numpy(ids), torch.from_numpy(targets)),
                excerpts=tuple(range(len(excerpts))),
                num_targets=int((targets != IGNORE_INDEX).sum()),
            )
        ]

    def nats(self, batch: MicroBatch) -> Tensor:
        assert isinstance(self.model, Decoder)
        ids_BTF, targets_BTF = (tensor.to(self._device) for tensor in batch.inputs)
        return self.model.nats(ids_BTF, targets_BTF).sum(1)

    def generate(
        self, num_samples: int, num_bars: int, sampling: SamplingConfig, seed: int
    ) -> list[QuantisedPiece | None]:
        assert isinstance(self.model, Decoder)
        written = sample_decoder(
            self.model,
            num_samples,
            sampling,
            seed=seed,
            max_tokens=self._max_tokens,
            is_over=lambda ids: self.encoding.bars_begun(ids) > num_bars,
        )
        return [self.encoding.decode(ids) for ids in written]

    def round_trip(self, excerpt: Excerpt) -> QuantisedPiece | None:
        ids = self.encoding.encode(excerpt.music, starts=excerpt.starts, ends=excerpt.ends)
        return self.encoding.decode(ids)

    @property
    def settings(self) -> dict[str, Any]:
        config = self.config
        return {
            **self.encoding.settings,
            "layers": config.num_layers,
            "width": config.width,
            "heads": config.num_heads,
            "ffn_width": config.ffn_width,
            "chained": config.chained,
        }
