"""The products that generation is held against are those that it carries out, and no others."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meloformer.benchmarks.generate_bench import (
    COMPILED,
    GENERATION,
    PRODUCTS,
    GenerateBench,
    ProductList,
    claimed,
    measure,
)
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.vocabulary import KIND_OF, Kind
from tests.layouts import tiny_config


@pytest.fixture(autouse=True)
def torch_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have run ZeRO stage 3, which puts its own in its place."""
    monkeypatch.setattr(F, "linear", torch._C._nn.linear)


def test_products_have_the_shapes_of_what_was_computed() -> None:
    x, weight = torch.randn(2, 3, 8), torch.randn(5, 8)
    q, k = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 7, 8)
    with ProductList() as noted:
        F.linear(x, weight)
        F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
        x + 1
    shapes = [tuple(product().shape) for product in noted.products]
    # Of two rows and two groups of two heads: their scores, and what they read.
    assert shapes == [(6, 5), (4, 2, 7), (4, 2, 8)]


def test_every_step_of_every_layer_is_noted() -> None:
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=2)).eval()
    controls = ControlConfig(bars=2, instruments=("0",))
    with ProductList() as noted:
        (ids,) = generate(model, controls, SamplingConfig(), seed=1)
    # EOS is never read; the prefix is read at once.
    num_steps = 1 + len(ids) - len(controls.prefix()) - 1
    num_closed = 1
    # Query, key and value in one, out, and two of the feed-forward network; two of attention.
    # Summaries have those and their coarse keys and values; in the last layer the two are missing.
    of_tokens = num_steps * (2 * 6 + 1)
    of_summaries = num_closed * (2 * 7 - 2)
    assert len(noted.products) == of_tokens + of_summaries


def test_figures_are_of_the_pieces_that_were_written() -> None:
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=1)).eval()
    bench = GenerateBench(
        model=model,
        controls=ControlConfig(bars=2, instruments=("0",)),
        batch_sizes=(1, 2),
        max_tokens=40,
        rounds=2,
        device=torch.device("cpu"),
    )
    rows = measure(bench)
    assert [row["batch_size"] for row in rows] == [1, 1, 1, 2, 2, 2]
    for row in rows:
        assert 0 < row["tokens"] <= 41 * row["batch_size"]
    pieces = generate(model, bench.controls, SamplingConfig(), num_samples=2)
    num_notes = sum(int(np.sum(KIND_OF[ids] == Kind.PITCH)) for ids in pieces)
    seconds = rows[3]["seconds_per_piece"] * 2
    if all(len(ids) <= 40 for ids in pieces):
        assert rows[3]["notes_per_second"] * seconds == pytest.approx(num_notes)
    assert rows[1]["times_the_products"] == 1


def test_claims_are_of_one_piece_at_a_time_and_of_their_device() -> None:
    rows = [
        {
            "candidate": name,
            "batch_size": batch_size,
            "times_the_products": 1.5,
            "tokens_per_second": speed * batch_size,
        }
        for name, speed in ((GENERATION, 102.0), (PRODUCTS, 10.0), (COMPILED, 1020.0))
        for batch_size in (1, 64)
    ]
    assert claimed(rows, torch.device("cpu")) == {"generate_cpu": 1.5}
    # 60 bars of 170 tokens.
    assert claimed(rows, torch.device("cuda")) == {
        "generate_gpu": 100.0,
        "generate_gpu_compiled": 10.0,
    }
    assert claimed(rows[:2], torch.device("cuda")) == {"generate_gpu": 100.0}
