"""Generation beside its own matrix products and nothing else, in turns in one process.

What a piece costs at least are the products of its linear layers and of its attention, in the
shapes and on the weights that the decoder uses them: they are noted down while pieces are written,
and then carried out alone.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor
from torch.overrides import TorchFunctionMode

from meloformer.benchmarks.alternation import Candidate, Timing, time_in_turns
from meloformer.benchmarks.bench_tables import percent, plain, rounded, table_of
from meloformer.generation.controls import ControlConfig
from meloformer.generation.decode_graphs import DecodeGraphs
from meloformer.generation.generate import generate
from meloformer.generation.int8 import use_int8_weights
from meloformer.generation.sampling import SamplingConfig
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.vocabulary import KIND_OF, Kind

Product = Callable[[], object]
GENERATION = "generation"
COMPILED = "generation, compiled"
PRODUCTS = "its matrix products alone"
_OF_GPU = {GENERATION: "generate_gpu", COMPILED: "generate_gpu_compiled"}
# Two minutes of eight tracks: 60 bars of 4/4 at 120 with the 170 tokens that such a bar holds.
_PIECE_TOKENS = 60 * 170


class ProductList(TorchFunctionMode):
    """Notes every matrix product of what runs inside, as calls that carry it out alone.

    Its operands are those of the same shape that came first, since values do not matter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self._operands: dict[tuple[Any, ...], Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Let torch do it, and note it if it is a product."""
        result = func(*args, **(kwargs or {}))
        if func is F.linear:
            x, weight = args[:2]
            self._add(self._like(x.reshape(-1, x.shape[-1])), weight.t())
        elif func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            # Queries of a group beside each other: they read the same keys.
            q = self._like(q.reshape(-1, q.shape[1] // k.shape[1] * q.shape[2], q.shape[3]))
            k, v = (self._like(x.reshape(-1, *x.shape[2:])) for x in (k, v))
            scores = self._like(q.new_empty(1).expand(*q.shape[:2], k.shape[1]))
            self._add(q, k.transpose(1, 2))
            self._add(scores, v)
        return result

    def _add(self, left: Tensor, right: Tensor) -> None:
        self.products.append(lambda: torch.matmul(left, right))

    def _like(self, x: Tensor) -> Tensor:
        """A tensor of this shape; of all that differ in one length, parts of the longest."""
        key = (*x.shape[:-2], x.shape[-1]) if x.dim() == 2 else (x.shape[0], x.shape[2])
        found = self._operands.get(key)
        if found is None or found.shape[-2] < x.shape[-2]:
            longest = max(x.shape[-2], 0 if found is None else 2 * found.shape[-2])
            found = torch.zeros(*x.shape[:-2], longest, x.shape[-1], dtype=x.dtype, device=x.device)
            self._operands[key] = found
        return found[..., : x.shape[-2], :]


@dataclass(frozen=True, kw_only=True)
class GenerateBench:
    """What is timed.

    Args:
        model: in evaluation mode.
        controls: of all pieces.
        batch_sizes: pieces side by side; each is measured.
        max_tokens: of a piece, after which it is cut short.
        rounds: timed calls of each candidate.
        device: where the model is.
        compiles: whether compiled generation takes part.
    """

    model: MuseFormer
    controls: ControlConfig
    batch_sizes: Sequence[int]
    max_tokens: int
    rounds: int
    device: torch.device
    compiles: bool = False


def measure(bench: GenerateBench) -> list[dict[str, Any]]:
    """Figures of all candidates for each batch size, as JSON holds them."""
    return [row for size in bench.batch_sizes for row in _measure_batch(bench, size)]


def _measure_batch(bench: GenerateBench, batch_size: int) -> list[dict[str, Any]]:
    saved = _Writer(bench, bench.model, batch_size)
    noted = ProductList()
    with noted:
        saved()

    def multiply() -> None:
        with torch.no_grad():
            for product in noted.products:
                product()

    writers = {GENERATION: saved, PRODUCTS: saved}
    calls = {GENERATION: Candidate(saved), PRODUCTS: Candidate(multiply)}
    if bench.device.type == "cpu":
        rounded_model = copy.deepcopy(bench.model)
        use_int8_weights(rounded_model)
        writers["generation, int8 weights"] = writer = _Writer(bench, rounded_model, batch_size)
        calls["generation, int8 weights"] = Candidate(writer)
    if bench.compiles:
        graphs = DecodeGraphs(bench.model)
        writers[COMPILED] = writer = _Writer(bench, bench.model, batch_size, graphs)
        calls[COMPILED] = Candidate(writer)
    timings = time_in_turns(calls, bench.device, bench.rounds)
    products = timings[PRODUCTS]
    rows = []
    for name, timing in timings.items():
        assert isinstance(timing, Timing) and isinstance(products, Timing)
        writer = writers[name]
        # Of neighbours in time, so that a load hits both; by token, since pieces differ.
        times = float(np.median(np.divide(timing.seconds, products.seconds)))
        rows.append(
            {
                "candidate": name,
                "batch_size": batch_size,
                "tokens": writer.num_tokens,
                "tokens_per_second": writer.num_tokens / timing.median,
                "notes_per_second": writer.num_notes / timing.median,
                "seconds_per_piece": timing.median / batch_size,
                "spread": timing.spread,
                "times_the_products": times * saved.num_tokens / writer.num_tokens,
            }
        )
    return rows


def claimed(rows: Sequence[dict[str, Any]], device: torch.device) -> dict[str, float]:
    """Figures of one piece at a time under the names by which claims ask for them.

    On a CPU the time beside that of the products; elsewhere the seconds that a piece of two minutes
    and eight tracks takes at the speed that was measured.
    """
    found = {}
    for row in rows:
        if row["batch_size"] != 1:
            continue
        if row["candidate"] == GENERATION and device.type == "cpu":
            found["generate_cpu"] = row["times_the_products"]
        elif (name := _OF_GPU.get(row["candidate"])) and device.type != "cpu":
            found[name] = _PIECE_TOKENS / row["tokens_per_second"]
    return found


class _Writer:
    """Writes the same pieces at each call, and knows how much they hold."""

    def __init__(
        self,
        bench: GenerateBench,
        model: MuseFormer,
        batch_size: int,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._bench, self._model, self._batch_size = bench, model, batch_size
        self._graphs = graphs
        self.num_tokens = self.num_notes = 0

    def __call__(self) -> None:
        pieces = generate(
            self._model,
            self._bench.controls,
            SamplingConfig(),
            num_samples=self._batch_size,
            graphs=self._graphs,
            stop=self._stop,
        )
        self.num_notes = sum(int((KIND_OF[ids] == Kind.PITCH).sum()) for ids in pieces)

    def _stop(self, count: int) -> bool:
        self.num_tokens = count
        return count >= self._bench.max_tokens * self._batch_size


def generate_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """The figures for people."""
    return table_of(
        title,
        rows,
        {
            "candidate": ("candidate", plain),
            "batch_size": ("pieces at once", plain),
            "tokens": ("tokens", plain),
            "tokens_per_second": ("tokens/s", rounded(0)),
            "notes_per_second": ("notes/s", rounded(0)),
            "seconds_per_piece": ("s per piece", rounded(2)),
            "spread": ("spread", percent),
            "times_the_products": ("times the products", rounded(2)),
        },
    )
