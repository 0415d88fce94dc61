"""The formula of memory against what autograd keeps and what is alive.

A dense mask is left out of the count: the block-sparse kernel has none, and all else is the same.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

from meloformer.model import attention, fused, masks
from meloformer.model.config import SIZES, Checkpointing, MuseFormerConfig
from meloformer.model.injection import NoisedOwn, open_layout
from meloformer.model.memory import BatchSize, batch_bytes, kept_bytes, peak_bytes
from meloformer.model.museformer import MuseFormer
from tests.layouts import as_torch, random_layout, tiny_config
from tests.model import live_bytes

ROWS, LENGTH = 2, 256
SLOTS = masks.num_summaries(LENGTH)


class KernelNorm(torch.autograd.Function):
    """RMSNorm that keeps what the one kernel of CUDA keeps: its input and the inverse means."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        inverse = (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        ctx.save_for_backward(x, inverse, weight)
        return (x * inverse).to(x.dtype) * weight

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, _, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).flatten(0, -2).sum(0)


@pytest.fixture
def kernel_norm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def rms_norm(x: Tensor, shape: object, weight: Tensor, eps: float | None = None) -> Tensor:
        found: Tensor = KernelNorm.apply(x, weight)
        return found

    monkeypatch.setattr(F, "rms_norm", rms_norm)
    yield


class Run:
    """A model and a batch, ready for a forward pass up to the summed loss."""

    def __init__(
        self,
        config: MuseFormerConfig,
        dtype: torch.dtype = torch.float32,
        checkpointing: Checkpointing = "none",
        precision: torch.dtype | None = None,
        fuse: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.fuse = fuse
        self.model = MuseFormer(config, checkpointing=checkpointing, fuse=fuse).to(dtype)
        self.layout = as_torch(random_layout(3, rows=ROWS, length=LENGTH, slots=SLOTS))
        if not config.summaries:
            self.layout = self.layout.without_summaries()
        self.start = None
        if config.open_summary_rate:
            # Whether rows have any changes nothing: shapes are the same.
            self.layout = open_layout(self.layout, torch.ones(ROWS, SLOTS, dtype=torch.bool))
            self.start = NoisedOwn(range(ROWS))
        self.ids = torch.randint(config.vocab_size, (ROWS, LENGTH))
        rule = masks.rule_of(config.rule)
        self.plan = attention.build_plan(self.layout, rule, precision=precision)
        calls = [self.plan.summarize, *self.plan.update]
        if self.plan.opened:
            calls += [self.plan.opened.summarize, *self.plan.opened.update]
        self.masks = Counter(call.mask.shape for call in calls if call)
        own = [
            *self.model.parameters(),
            self.ids,
            *(label for label in vars(self.layout).values() if label is not None),
        ]
        own += [
            x
            for call in self.plan.update
            for x in (call.order_BT, call.inverse_BT)
            if x is not None
        ]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}

    def is_no_activation(self, tensor: Tensor) -> bool:
        """Weights, the batch, and dense masks, once for all heads or for each."""
        shape = tensor.shape
        is_mask = tensor.ndim == 4 and torch.Size((shape[0], 1, *shape[2:])) in self.masks
        return is_mask or tensor.untyped_storage().data_ptr() in self._own

    def loss(self) -> Tensor:
        """As training/loss.py takes it: compiled, or row by row in fp32."""
        logits_BTV = self.model(self.ids, self.layout, self.plan, self.start)
        if self.fuse:
            return fused.token_nats(logits_BTV, self.ids, ignore_index=-100).sum()
        rows = [
            F.cross_entropy(logits_TV.float(), ids_T, reduction="none")
            for logits_TV, ids_T in zip(logits_BTV, self.ids, strict=True)
        ]
        return torch.stack(rows).sum()


def size_of(run: Run, *, is_norm_fused: bool = False) -> BatchSize:
    parameter = next(run.model.parameters())
    precision = run.plan.precision
    return BatchSize.of(
        ROWS,
        LENGTH,
        element_bytes=parameter.element_size(),
        attention_bytes=precision and precision.itemsize,
        checkpointing=run.model.checkpointing,
        is_norm_fused=is_norm_fused,
        is_compiled=run.fuse,
    )


def assert_kept(run: Run, *, is_norm_fused: bool = False) -> None:
    found = live_bytes.kept_bytes(run.loss, run.is_no_activation)
    predicted = kept_bytes(run.model.config, size_of(run, is_norm_fused=is_norm_fused))
    assert predicted.total() == pytest.approx(found, rel=0.02), predicted


@pytest.mark.parametrize("checkpointing", ["none", "ffn", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", masks.RULES)
def test_autograd_keeps_what_the_formula_says(
    rule: str, dtype: torch.dtype, checkpointing: Checkpointing
) -> None:
    assert_kept(Run(tiny_config(rule=rule, num_layers=2), dtype, checkpointing))


@pytest.mark.parametrize("checkpointing", ["none", "ffn", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_of_one_kernel_keeps_its_input_alone(
    kernel_norm: None, dtype: torch.dtype, checkpointing: Checkpointing
) -> None:
    run = Run(tiny_config(num_layers=2), dtype, checkpointing)
    assert_kept(run, is_norm_fused=True)


@pytest.mark.parametrize("rule", masks.RULES)
def test_attention_in_fp32_inside_bf16_keeps_wide_copies(kernel_norm: None, rule: str) -> None:
    run = Run(tiny_config(rule=rule, num_layers=2), torch.bfloat16, precision=torch.float32)
    assert_kept(run, is_norm_fused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_knows_grouped_heads_other_widths_and_the_dense_twin(
    kernel_norm: None, dtype: torch.dtype
) -> None:
    grouped = tiny_config(num_layers=3, num_heads=8, num_kv_heads=2, width=256, ffn_width=512)
    twin = tiny_config(rule="full", summaries=False, num_layers=2)
    small = MuseFormerConfig(
        **{**vars(SIZES["small"]), "num_layers": 2},
        vocab_size=976,
        num_onsets=288,
        num_instruments=129,
    )
    for config in (grouped, twin, small):
        assert_kept(Run(config, dtype), is_norm_fused=True)


@pytest.mark.parametrize("checkpointing", ["none", "ffn", "layer"])
@pytest.mark.parametrize(
    ("rule", "dtype"),
    [("full", torch.bfloat16), ("halves", torch.bfloat16), ("full", torch.float32)],
)
def test_the_formula_knows_open_summaries_above_the_injection_layer(
    kernel_norm: None, rule: str, dtype: torch.dtype, checkpointing: Checkpointing
) -> None:
    config = tiny_config(rule=rule, num_layers=5, open_summary_rate=0.5)
    run = Run(config, dtype, checkpointing)
    assert_kept(run, is_norm_fused=True)
    # More than the tolerance of the comparison.
    size = size_of(run, is_norm_fused=True)
    closed = kept_bytes(replace(config, open_summary_rate=0.0), size)
    assert closed.total() < 0.97 * kept_bytes(config, size).total()


def test_open_summaries_beside_attention_in_fp32_keep_wide_copies(kernel_norm: None) -> None:
    config = tiny_config(num_layers=5, open_summary_rate=0.5)
    assert_kept(Run(config, torch.bfloat16, precision=torch.float32), is_norm_fused=True)


@pytest.fixture
def partitioner(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the compiler keeps and computes again, without writing its kernels."""
    monkeypatch.setattr(fused, "BACKEND", "aot_eager_decomp_partition")
    fused._compiled.cache_clear()
    torch._dynamo.reset()
    yield
    fused._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "ffn", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_parts_and_the_compiled_loss_keep_their_inputs_alone(
    partitioner: None, dtype: torch.dtype, checkpointing: Checkpointing
) -> None:
    assert_kept(Run(tiny_config(num_layers=2), dtype, checkpointing, fuse=True))


@pytest.mark.parametrize("checkpointing", ["none", "ffn", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_layers", "open_summary_rate"), [(2, 0.0), (5, 0.0), (6, 0.5)])
def test_the_peak_of_forward_and_backward_is_within_a_tenth_of_what_is_alive(
    kernel_norm: None,
    num_layers: int,
    open_summary_rate: float,
    dtype: torch.dtype,
    checkpointing: Checkpointing,
) -> None:
    config = tiny_config(num_layers=num_layers, open_summary_rate=open_summary_rate)
    run = Run(config, dtype, checkpointing)
    # Additive masks, of SUMMARIZE and of the two calls of UPDATE, with open summaries of all four.
    mask_bytes = dtype.itemsize * sum(n * math.prod(shape) for shape, n in run.masks.items())
    for parameter in run.model.parameters():
        # As the engine does, which counts them as its own.
        parameter.register_post_accumulate_grad_hook(lambda found: setattr(found, "grad", None))
    with live_bytes.LiveBytes(run.model.parameters()) as live:
        run.loss().backward()
    size = size_of(run, is_norm_fused=True)
    predicted = peak_bytes(run.model.config, size) - batch_bytes(run.model.config, size)
    assert predicted == pytest.approx(live.peak - mask_bytes, rel=0.1)
