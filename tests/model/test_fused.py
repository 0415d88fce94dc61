"""The pointwise parts of a layer, compiled: graphs by number of rows, values as uncompiled."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch._dynamo

from meloformer.model import fused
from meloformer.model.attention import build_plan
from meloformer.model.injection import NoisedOwn, open_layout
from meloformer.model.masks import rule_of
from meloformer.model.museformer import Layer, MuseFormer
from meloformer.training.loss import IGNORE_INDEX, token_nats
from tests.layouts import as_torch, random_layout, tiny_config

RULE = rule_of("halves")


@pytest.fixture
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend that a test names; nothing compiled before or after."""
    monkeypatch.setattr(fused, "BACKEND", request.param)
    fused._compiled.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    fused._compiled.cache_clear()
    torch._dynamo.reset()


def num_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def model(
    fuse: bool,
    checkpointing: str = "none",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> MuseFormer:
    torch.manual_seed(0)
    small = {"num_layers": 2, "width": 32, "ffn_width": 48, "vocab_size": 97, "max_seq_len": 128}
    config = tiny_config(**small | changes)
    return MuseFormer(config, checkpointing=checkpointing, fuse=fuse).to(dtype)  # type: ignore[arg-type]


def forward(museformer: MuseFormer, rows: int, length: int) -> torch.Tensor:
    layout = as_torch(random_layout(3, rows=rows, length=length, slots=32))
    ids = torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(1))
    start = None
    if museformer.config.num_open_layers and torch.is_grad_enabled():
        layout = open_layout(layout, torch.ones(rows, 32, dtype=torch.bool))
        start = NoisedOwn(range(rows))
    return museformer(ids, layout, build_plan(layout, RULE), start)


def targets(rows: int, length: int) -> torch.Tensor:
    """Some places have none, and so has the last row."""
    drawn = torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(2))
    drawn[:, ::5] = IGNORE_INDEX
    drawn[-1] = IGNORE_INDEX
    return drawn


def train(museformer: MuseFormer, rows: int, length: int) -> None:
    logits = forward(museformer, rows, length)
    token_nats(logits, targets(rows, length), fuse=True).sum().backward()


# A backend that compiles nothing: which graphs there are is settled before it.
@pytest.mark.parametrize("compiler", ["aot_eager"], indirect=True)
@pytest.mark.parametrize("checkpointing", ["none", "layer"])
@pytest.mark.parametrize(
    "changes", [{}, {"num_layers": 5, "open_summary_rate": 0.5}], ids=["closed", "open"]
)
def test_lengths_add_no_graph_and_scoring_has_none(
    compiler: None, changes: dict, checkpointing: str
) -> None:
    museformer = model(fuse=True, checkpointing=checkpointing, **changes)
    for length in (96, 64, 112, 32):
        train(museformer, 2, length)
        assert num_graphs() == fused.GRAPHS_PER_ROWS, length
    for length in (96, 48):
        train(museformer, 1, length)
        assert num_graphs() == 2 * fused.GRAPHS_PER_ROWS, length
    with torch.no_grad():
        forward(museformer, 3, 80)
    assert num_graphs() == 2 * fused.GRAPHS_PER_ROWS


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_loss_and_its_gradient_are_the_plain_ones(
    compiler: None, dtype: torch.dtype
) -> None:
    for length in (64, 48):
        drawn = torch.randn(3, length, 97, generator=torch.Generator().manual_seed(length))
        results = []
        for fuse in (False, True):
            logits = (8 * drawn).to(dtype).requires_grad_()
            nats = token_nats(logits, targets(3, length), fuse=fuse)
            assert nats.dtype == torch.float32
            (nats * torch.linspace(0, 1, length)).sum().backward()
            results.append((nats.detach(), logits.grad))
        (nats, gradient), (fast_nats, fast_gradient) = results
        assert torch.allclose(fast_nats, nats, rtol=1e-5, atol=1e-5)
        assert not fast_nats[targets(3, length) == IGNORE_INDEX].any()
        assert fast_gradient.dtype == dtype and not fast_gradient[-1].any()
        error = (fast_gradient - gradient).abs().max() / gradient.abs().max()
        assert error <= (1e-6 if dtype == torch.float32 else 2**-8)
    assert num_graphs() == 1


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["inductor"], indirect=True)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"]
)
def test_compiled_and_plain_give_the_same_logits_and_gradients(
    compiler: None, dtype: torch.dtype, tolerance: float
) -> None:
    plain, fast = model(fuse=False, dtype=dtype), model(fuse=True, dtype=dtype)
    for length in (96, 64):
        expected, found = forward(plain, 2, length), forward(fast, 2, length)
        scale = expected.abs().max()
        assert (found - expected).abs().max() <= tolerance * scale
        for museformer, logits in ((plain, expected), (fast, found)):
            museformer.zero_grad()
            token_nats(logits, targets(2, length), fuse=museformer is fast).sum().backward()
        for (name, one), other in zip(plain.named_parameters(), fast.parameters(), strict=True):
            largest = one.grad.abs().max()
            assert (other.grad - one.grad).abs().max() <= tolerance * largest + 1e-7, name
    assert num_graphs() == fused.GRAPHS_PER_ROWS


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["inductor"], indirect=True)
def test_what_a_gpu_chooses_by_length_adds_no_graph(
    compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler takes this device for a GPU as long as it weighs a merger, then makes none."""
    import torch._inductor.scheduler as scheduler
    from torch._inductor.utils import sympy_product

    merger = scheduler.MixOrderReduction
    can_fuse, sizes_of = merger.can_fuse, merger.get_numel_rnumel
    weighed = []

    def only_weighed(one: Any, other: Any) -> bool:
        weighed.append(can_fuse(one, other))
        return False

    # A CPU's groups list the loops that a GPU's multiply.
    monkeypatch.setattr(
        merger, "get_numel_rnumel", lambda node: tuple(map(sympy_product, sizes_of(node)))
    )
    monkeypatch.setattr(merger, "can_fuse", only_weighed)
    monkeypatch.setattr(scheduler, "_is_gpu_triton_backend", lambda *nodes: True)
    heads, width = 8, 64
    weight = torch.ones(width, requires_grad=True)
    # Sums over 8 x 64 x N numbers: on both sides of 5 x 2**20.
    with torch._inductor.config.patch(force_disable_caches=True):
        for length in (16384, 1024):
            x = torch.zeros(1, length, heads, width, requires_grad=True)
            angles = torch.zeros(1, 1, length, width // 2)
            fused.norm_rotate(x, weight, None, angles).sum().backward()
    assert weighed
    assert num_graphs() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the compiler of a GPU")
@pytest.mark.parametrize("compiler", ["inductor"], indirect=True)
def test_no_length_adds_a_graph_on_a_gpu(compiler: None) -> None:
    museformer = model(fuse=True, dtype=torch.bfloat16).cuda()
    layer = cast(Layer, museformer.layers[0])
    for length in (262144, 8192, 512, 128):
        x = torch.randn(1, length, 32, device="cuda", dtype=torch.bfloat16)
        angles = torch.zeros(1, 1, length, layer.head_width // 2, device="cuda")
        out = layer.queries(x, angles).sum() + layer.keys_values(x, angles)[0].sum()
        logits = torch.randn(1, length, 976, device="cuda", dtype=torch.bfloat16)
        nats = token_nats(logits.requires_grad_(), targets(1, length).cuda(), fuse=True)
        (out + layer.add_ffn(x).sum() + nats.sum()).backward()
        assert num_graphs() == fused.GRAPHS_PER_ROWS, length
