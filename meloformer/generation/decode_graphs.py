"""Compiled decoding: on a GPU a token costs the replay of a graph, not hundreds of launches.

Every room that the buffers can have is a graph of its own, so room doubles: their number grows with
the logarithm of the length. One graph more than there are rooms means that a value which changes
from token to token is compiled in, and then every token would compile anew; that is an error here.

The graph is captured by hand, and not by torch.compile's own "reduce-overhead": that leaves graphs
out with no more than a log line where buffers are written to that it does not know as fixed, and
for good when they have moved 128 times, as they do from batch to batch.
"""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from meloformer.errors import GenerationError
from meloformer.generation.cache_store import LEAST_SLOTS, CacheStore, doubled
from meloformer.generation.decode_layer import decode_layers
from meloformer.generation.decode_step import Buffers, DecodeStep
from meloformer.model.museformer import MuseFormer

# On a GPU the attention of one token to so many places costs no more than that to a few.
LEAST_TOKENS = 1024
_WARM_UPS, _NO_LIMIT = 2, 2**31


class DecodeGraphs:
    """The compiled step of a model, for all batches of a run.

    Args:
        model: in evaluation mode; its weights stay as they are.
        least_tokens: room for tokens that a batch begins with.
        backend: that torch compiles with; None calls the same step as it is, which is for tests.

    Attributes:
        rooms: rows, open summaries, summaries and tokens of all buffers so far: one graph each.
        num_compiled: graphs that torch has compiled.
    """

    def __init__(
        self,
        model: MuseFormer,
        *,
        least_tokens: int = LEAST_TOKENS,
        backend: str | None = "inductor",
    ) -> None:
        with torch.no_grad():
            self.layers = decode_layers(model)
        self._has_summaries, self._least_tokens = model.config.summaries, least_tokens
        self._is_compiled = backend is not None
        self._step: Callable[..., Tensor] = DecodeStep(model, self.layers).__call__
        if backend is not None:
            self._step = torch.compile(self._step, dynamic=False, fullgraph=True, backend=backend)
        self.rooms: set[tuple[int, int, int, int]] = set()
        self.num_compiled = 0

    def room(self, num_bars: int) -> tuple[int, int]:
        """Tokens and summaries that a batch of so many bars begins with room for."""
        slots = doubled(LEAST_SLOTS, num_bars) if self._has_summaries else 0
        return self._least_tokens, slots

    def run(self, buffers: Buffers, told_7B: Tensor, first_opened: int) -> Tensor:
        """See `DecodeStep`.

        Raises:
            GenerationError: torch cannot compile here, or wants more graphs than there are rooms.
        """
        is_new = buffers.shape not in self.rooms
        self.rooms.add(buffers.shape)
        if not self._is_compiled:
            return self._step(buffers, told_7B, first_opened)
        before = _num_compiled()
        # Of the same program for every room, and for whatever else this process decodes.
        limits = {"recompile_limit": _NO_LIMIT, "accumulated_recompile_limit": _NO_LIMIT}
        try:
            with torch._dynamo.config.patch(limits) if is_new else nullcontext():
                logits_BV = self._step(buffers, told_7B, first_opened)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise self._exceeded(buffers) from error
        except torch._dynamo.exc.TorchDynamoException as error:
            raise GenerationError(
                f"--compile: torch cannot compile here ({_first_line(error)}); allowed: a device "
                "that torch.compile serves, with its compiler (g++ on a CPU, triton on a GPU); or "
                "leave --compile out"
            ) from error
        self.num_compiled += _num_compiled() - before
        if self.num_compiled > len(self.rooms):
            raise self._exceeded(buffers)
        return logits_BV

    def _exceeded(self, buffers: Buffers) -> GenerationError:
        rows, num_open, slots, tokens = buffers.shape
        return GenerationError(
            f"--compile: {rows} rows with room for {tokens:,} tokens, {slots} summaries and "
            f"{num_open} open ones want one more graph than the {len(self.rooms)} declared: a "
            "value that changes from token to token is compiled in, and each would compile anew; "
            "leave --compile out, or start with TORCH_LOGS=recompiles to see which it is"
        )


class GraphDecoder:
    """Adds tokens to one store through the graphs of its rooms.

    Args:
        graphs: of the model.
        store: of a batch; what its buffers hold may change in any way between two tokens.
        open_BI: bool, the open summaries.
        first_opened: the first layer, from 0, that reads them.
    """

    def __init__(
        self, graphs: DecodeGraphs, store: CacheStore, open_BI: np.ndarray, first_opened: int
    ) -> None:
        self._graphs, self._store = graphs, store
        self._open_BI, self._first_opened = open_BI, first_opened
        self._buffers: Buffers | None = None
        self._replay: _Replay | None = None
        self._num_changes = -1

    def add(self, ids_B: np.ndarray, labels_4B: np.ndarray, piece_B: np.ndarray) -> Tensor:
        """(B, V) logits after one more token a row, which the store has taken already.

        Args:
            ids_B: int64.
            labels_4B: int64 bar, instrument, index, onset.
            piece_B: 0, and -1 in rows that have ended.
        """
        store = self._store
        place_B = np.full(len(ids_B), store.num_tokens - 1)
        told_7B = torch.from_numpy(np.stack([ids_B, piece_B, *labels_4B, place_B]))
        buffers = self._renewed()
        if buffers.keys_4BN.device.type != "cuda":
            return self._graphs.run(buffers, told_7B, self._first_opened)
        if self._replay is None:
            self._replay = _Replay(self._graphs, buffers, told_7B, self._first_opened)
        return self._replay(told_7B)

    def close(self, rows_R: Tensor, bars_R: Tensor) -> None:
        """Let tokens read the summaries of these bars, which the store has taken already."""
        if self._buffers is not None:
            self._buffers.keys_4BN[0, rows_R, bars_R] = 0

    def open(self, open_BI: np.ndarray) -> None:
        """Take other open summaries than those so far."""
        self._open_BI, self._num_changes = open_BI, -1

    def _renewed(self) -> Buffers:
        """The buffers as the store has them now; new ones where they have moved."""
        store, device = self._store, self._store.layers[0].read.device
        reads = tuple(layer.read for layer in store.layers)
        has_moved = self._buffers is None or reads[0] is not self._buffers.reads[0]
        if self._buffers is not None and not has_moved and self._num_changes == store.num_changes:
            return self._buffers
        self._num_changes = store.num_changes
        num_rows, num_slots = store.slot_piece_BS.shape
        num_keys = num_slots + store.labels_4BT.shape[2]
        keys_4BN = np.full((4, num_rows, num_keys), -1, dtype=np.int32)
        known = store.key_labels()[:4]
        keys_4BN[:, :, : known[0].shape[1]] = known
        open_BI = np.where(self._open_BI, 0, -1).astype(np.int32)
        known_4BN, known_BI = torch.from_numpy(keys_4BN), torch.from_numpy(open_BI)
        if self._buffers is None or has_moved:
            # What was captured reads and writes where nobody looks any more.
            self._replay = None
            self._buffers = Buffers(reads, known_4BN.to(device), known_BI.to(device), num_slots)
        else:
            self._buffers.keys_4BN.copy_(known_4BN)
            self._buffers.open_BI.copy_(known_BI)
        return self._buffers


class _Replay:
    """The step over some buffers as one CUDA graph.

    What the step writes it writes again to the same places, so it can be called beforehand: torch
    compiles, and chooses among kernels, at the first calls, which no graph can hold.
    """

    def __init__(
        self, graphs: DecodeGraphs, buffers: Buffers, told_7B: Tensor, first_opened: int
    ) -> None:
        device = buffers.keys_4BN.device
        self._told_7B = told_7B.to(device)
        self._buffers = buffers  # a graph knows addresses alone
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    graphs.run(buffers, self._told_7B, first_opened)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._logits_BV = graphs.run(buffers, self._told_7B, first_opened)

    def __call__(self, told_7B: Tensor) -> Tensor:
        """The logits, in memory of their own: the next replay writes over those of the graph."""
        self._told_7B.copy_(told_7B)
        self._graph.replay()
        return self._logits_BV.clone()


def _num_compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
