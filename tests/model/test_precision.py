"""The probe is what is tested: it judges sound attention and attention with one fault each."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from meloformer.batches.block_plans import build_blocks
from meloformer.errors import ConfigError
from meloformer.model import attention
from meloformer.model.masks import RULES
from meloformer.model.precision import (
    TOLERANCE,
    attention_dtype,
    choose_precision,
    compiled_causal,
    judge,
    own_graphs,
)
from tests.layouts import as_torch, random_layout

CPU = torch.device("cpu")
CASES = [f"{mode}{heads}" for mode in ("plain", "autocast", "checkpoint") for heads in ("", "2")]
CASES = [case.replace("2", ", grouped heads") for case in CASES]


def sound(q, k, v):
    q, k = q.to(v.dtype), k.to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class ScaledGradient(torch.autograd.Function):
    """The same value, a tenth too much gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.1 * gradient


def test_a_sound_kernel_keeps_the_dtype_of_the_model_in_every_case() -> None:
    choice = judge(sound, CPU, 64)
    assert choice.dtype is None
    assert list(choice.errors) == CASES
    assert all(0 < error < TOLERANCE / 2 for error in choice.errors.values())
    assert "agree with float64 on cpu" in choice.why


class RoundsWhatKernelsRound(torch.autograd.Function):
    """Causal attention whose probabilities, their gradients and row sums are rounded to bf16.

    The most that a sound kernel rounds: where a row has one key, the gradient of its query is all
    rounding.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        scores = (q.float() @ k.float().mT) * q.shape[-1] ** -0.5
        p = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        out = (p.bfloat16() @ v).bfloat16()
        ctx.save_for_backward(q, k, v, p, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        q, k, v, p, out = ctx.saved_tensors
        row_sum = (out * gradient).sum(-1, keepdim=True)
        p_gradient = gradient @ v.mT
        ds = (p * (p_gradient - row_sum).float()).bfloat16() * q.shape[-1] ** -0.5
        return ds @ k, ds.mT @ q, p.bfloat16().mT @ gradient


def test_what_sound_kernels_round_is_no_reason_for_fp32() -> None:
    def rounding(q, k, v):
        if v.dtype != torch.bfloat16:
            return sound(q, k, v)
        queries_per_kv = q.shape[1] // k.shape[1]
        k, v = (x.to(v.dtype).repeat_interleave(queries_per_kv, dim=1) for x in (k, v))
        return RoundsWhatKernelsRound.apply(q.to(v.dtype), k, v)

    choice = judge(rounding, CPU, 64)
    assert choice.dtype is None, choice.why
    assert max(choice.errors.values()) < 0.7 * TOLERANCE


def wrong_output(q, k, v):
    return sound(q, k, v) * 1.1


def wrong_short_rows(q, k, v):
    """Averages over many keys are small beside the first rows: their errors must not drown."""
    out = sound(q, k, v)
    return torch.cat([out[:, :, :200], out[:, :, 200:] * 1.1], dim=2)


def wrong_gradient_of_v(q, k, v):
    return sound(q, k, ScaledGradient.apply(v))


def no_gradient_of_k(q, k, v):
    return sound(q, k.detach(), v)


def not_finite(q, k, v):
    return sound(q, k, v) * float("nan")


def reads_the_future(q, k, v):
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, enable_gqa=True)


@pytest.mark.parametrize(
    "attend",
    [
        wrong_output,
        wrong_short_rows,
        wrong_gradient_of_v,
        no_gradient_of_k,
        not_finite,
        reads_the_future,
    ],
)
def test_a_kernel_that_is_wrong_in_bf16_alone_is_replaced_by_fp32(attend) -> None:
    choice = judge(only_in_bf16(attend), CPU, 64)
    assert choice.dtype == torch.float32
    assert "6 of 6 cases" in choice.why


def only_in_bf16(attend):
    return lambda q, k, v: (attend if v.dtype == torch.bfloat16 else sound)(q, k, v)


def raises_under_autocast(q, k, v):
    if torch.is_autocast_enabled("cpu"):
        raise RuntimeError("expected scalar type BFloat16 but found Float\nmore lines")
    return sound(q, k, v)


def raises_in_the_backward_of_grouped_heads(q, k, v):
    out = sound(q, k, v)
    if q.shape[1] != k.shape[1]:
        out.register_hook(lambda gradient: gradient @ gradient)
    return out


def returns_another_dtype(q, k, v):
    return sound(q, k, v).float() if torch.is_autocast_enabled("cpu") else sound(q, k, v)


def slips_when_recomputed(q, k, v):
    in_backward = torch._C._current_graph_task_id() != -1
    return sound(q * 1.5 if in_backward else q, k, v)


@pytest.mark.parametrize(
    ("attend", "failed", "words"),
    [
        (raises_under_autocast, {"autocast", "autocast, grouped heads"}, "found Float"),
        (
            raises_in_the_backward_of_grouped_heads,
            {case for case in CASES if "grouped" in case},
            "RuntimeError",
        ),
        (returns_another_dtype, {"autocast", "autocast, grouped heads"}, "torch.float32"),
        (slips_when_recomputed, {"checkpoint", "checkpoint, grouped heads"}, "error of a"),
    ],
    ids=["autocast", "grouped", "dtype", "checkpoint"],
)
def test_one_failing_case_decides_and_is_named_with_its_error(attend, failed, words) -> None:
    choice = judge(attend, CPU, 64)
    assert choice.dtype == torch.float32
    for case, error in choice.errors.items():
        is_right = isinstance(error, float) and error < TOLERANCE
        assert is_right == (case not in failed), (case, error)
    assert all(f"{case}: " in choice.why for case in failed)
    assert words in choice.why
    assert "\n" not in choice.why
    assert "--attention_precision bf16" in choice.why


def test_the_probe_runs_at_the_head_width_of_the_model() -> None:
    def wrong_when_wide(q, k, v):
        return sound(q, k, v) * (1.1 if q.shape[-1] == 128 and v.dtype == torch.bfloat16 else 1)

    assert judge(wrong_when_wide, CPU, 64).dtype is None
    assert judge(wrong_when_wide, CPU, 128).dtype == torch.float32


def test_a_kernel_that_is_wrong_in_fp32_too_is_refused_with_both_errors() -> None:
    with pytest.raises(ConfigError, match=r"wrong in bf16 \(plain: .* and in fp32 \(error of a"):
        judge(wrong_output, CPU, 64)


def test_a_fault_of_the_user_is_no_fault_of_the_kernel() -> None:
    def refuses(q, k, v):
        raise ConfigError("no such thing; allowed: another")

    with pytest.raises(ConfigError, match="allowed: another"):
        judge(refuses, CPU, 64)


def test_what_is_asked_for_is_not_probed() -> None:
    for device in (CPU, torch.device("cuda")):
        assert choose_precision("bf16", device).dtype is None
        asked = choose_precision("fp32", device)
        assert asked.dtype == torch.float32
        assert not asked.errors
    assert choose_precision("auto", CPU).dtype is None
    assert [attention_dtype(name, CPU) for name in ("auto", "bf16", "fp32")] == [
        None,
        None,
        torch.float32,
    ]


def test_a_choice_can_be_written_down_whole() -> None:
    for choice in (judge(raises_under_autocast, CPU, 64), choose_precision("auto", CPU)):
        assert json.loads(json.dumps(choice.to_json(), allow_nan=False)) == choice.to_json()
    assert choose_precision("fp32", CPU).to_json()["dtype"] == "float32"


def test_the_graphs_of_a_probe_count_against_no_budget() -> None:
    counters = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    before = counters["unique_graphs"]
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        double = torch.compile(lambda x: x * 2, dynamic=False, fullgraph=True, backend="eager")
        with own_graphs():
            for length in range(2, 8):
                double(torch.ones(length))
            assert counters["unique_graphs"] == before + 6
        assert counters["unique_graphs"] == before
        for length in (2, 3):  # the whole budget is left, and nothing compiled is
            double(torch.ones(length))
        assert counters["unique_graphs"] == before + 2
        with pytest.raises(Exception, match="recompile_limit"):
            double(torch.ones(9))
    torch._dynamo.reset()


class Handed(TorchFunctionMode):
    """Which dtypes the dense kernel is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            # Inside autocast what counts is what is left after its own casts.
            autocasts = torch.is_autocast_enabled("cpu")
            dtype = torch.get_autocast_dtype("cpu") if autocasts else None
            self.dtypes += [dtype or x.dtype for x in args[:3]]
        return func(*args, **(kwargs or {}))


def bf16_call(*, requires_grad: bool):
    generator = torch.Generator().manual_seed(0)
    layout = random_layout(seed=2, rows=1, length=256)
    blocks = build_blocks(layout, RULES["museformer"])
    shapes = [(1, 4, 256, 32), (1, 2, 384, 32), (1, 2, 384, 32)]
    inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    for x in inputs:
        x.requires_grad_(requires_grad)
    return inputs, as_torch(layout), as_torch(blocks)


def exact_output(inputs, layout) -> torch.Tensor:
    plan = attention.build_plan(layout, RULES["museformer"]).for_dtype(torch.float64)
    return attention.update(*(x.detach().double() for x in inputs), plan)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize(
    ("precision", "kernel"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_dense_attention_computes_in_the_chosen_dtype_and_returns_the_models(
    precision, kernel, autocast
) -> None:
    inputs, layout, _ = bf16_call(requires_grad=True)
    plan = attention.build_plan(
        layout, RULES["museformer"], precision=attention_dtype(precision, CPU)
    ).for_dtype(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Handed() as handed:
        out = attention.update(*inputs, plan)
    assert handed.dtypes == [kernel] * 3
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(x.grad.dtype == torch.bfloat16 for x in inputs)
    assert error(out.detach(), exact_output(inputs, layout)) < 2**-8


@pytest.mark.slow
def test_compiled_flex_computes_in_the_chosen_dtype_and_returns_the_models() -> None:
    inputs, layout, blocks = bf16_call(requires_grad=False)
    exact = exact_output(inputs, layout)
    rounded_once = exact.bfloat16()
    for precision in ("bf16", "fp32"):
        plan = attention.build_plan(
            layout,
            RULES["museformer"],
            "flex",
            blocks,
            precision=attention_dtype(precision, CPU),
        )
        for autocast in (False, True):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = attention.update(*inputs, plan)
            assert out.dtype == torch.bfloat16
            assert error(out, exact) < 2**-6
            # Computed in fp32 and rounded once, hardly an entry differs from the exact result
            # rounded once; bf16 probabilities leave their mark on a good part of them.
            share = float((out != rounded_once).float().mean())
            assert (share < 0.02) == (precision == "fp32"), (precision, autocast, share)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("num_heads", [2, 4])
def test_the_probe_calls_the_kernel_of_the_model_under_a_causal_mask(num_heads) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 256, 32, generator=generator) for n in (num_heads, 2, 2))
    with own_graphs(), torch.no_grad():
        out = compiled_causal(CPU)(q, k, v.bfloat16())
    assert out.dtype == torch.bfloat16
    assert error(out, sound(q.double(), k.double(), v.double())) < 2**-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_in_hand_is_probed_in_all_cases() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    choice = choose_precision("auto", device, head_width=64)
    assert list(choice.errors) == CASES
    assert torch.cuda.get_device_name(device) in choice.why
    assert (choice.dtype is None) == all(
        isinstance(error, float) and error <= TOLERANCE for error in choice.errors.values()
    )
