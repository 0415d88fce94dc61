"""The compiled kernel with its backward, on CUDA only; `dense` in float64 judges it."""

import dataclasses

import pytest
import torch

from meloformer.batches.batch import map_tensors
from meloformer.batches.block_plans import build_blocks
from meloformer.batches.phases import BatchShape
from meloformer.model import attention, kernel, masks
from meloformer.model.injection import NoisedOwn
from meloformer.model.museformer import MuseFormer
from meloformer.training.graphs import Shapes
from tests.layouts import as_torch, random_layout, tiny_config, with_open

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_cuda(value):
    return map_tensors(as_torch(value), lambda tensor: tensor.cuda())


def logits_and_gradients(model, ids, layout, plan, start=None) -> list[torch.Tensor]:
    model.zero_grad()
    logits = model(ids, layout, plan, start)
    logits.float().logsumexp(-1).mean().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters())]


def outputs_and_gradients(plan, q_BHSK, q_BHTK, k_BGNK, v_BGNK) -> list[torch.Tensor]:
    """Of both calls, one after the other."""
    found = []
    for attend, q in ((attention.summarize, q_BHSK), (attention.update, q_BHTK)):
        leaves = [x.detach().requires_grad_() for x in (q, k_BGNK, v_BGNK)]
        out = attend(*leaves, plan.for_dtype(q.dtype))
        # Rows of one key and rows of a thousand: weights that tell them apart.
        weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype)
        (out * weights.view_as(out)).sum().backward()
        found += [out.detach(), *(leaf.grad for leaf in leaves)]
    return found


@pytest.mark.parametrize("rule", masks.RULES)
@pytest.mark.parametrize("block_size", masks.BLOCK_SIZES)
@pytest.mark.parametrize("head_width", [64, 128])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
def test_the_kernel_equals_dense_forward_and_backward(
    rule, block_size, head_width, dtype, tolerance
) -> None:
    """Packed pieces and padding, two query heads per key/value head."""
    kernel.compiled_flex.cache_clear()
    torch._dynamo.reset()
    layout = random_layout(seed=3, rows=2, length=1024)
    assert layout.piece_BT.max() > 0 and (layout.piece_BT < 0).any()
    blocks = on_cuda(build_blocks(layout, masks.RULES[rule], block_size))
    layout = on_cuda(layout)
    num_slots = layout.piece_BS.shape[1]
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(2, heads, size, head_width, generator=generator).to("cuda", dtype)
        for heads, size in ((4, num_slots), (4, 1024), *[(2, num_slots + 1024)] * 2)
    ]
    dense = attention.build_plan(layout, masks.RULES[rule])
    expected = outputs_and_gradients(dense, *(x.double() for x in tensors))
    flex = attention.build_plan(layout, masks.RULES[rule], "flex", blocks)
    found = outputs_and_gradients(flex, *tensors)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("rule", masks.RULES)
@pytest.mark.parametrize("length", [600, 1024])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 6e-2)], ids=["fp32", "bf16"]
)
def test_flex_equals_dense_forward_and_backward(rule, length, dtype, tolerance) -> None:
    kernel.compiled_flex.cache_clear()
    torch._dynamo.reset()
    layout = random_layout(seed=3, length=length)
    blocks = on_cuda(build_blocks(layout, masks.RULES[rule]))
    layout = on_cuda(layout)
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(rule=rule, num_layers=2, width=256, ffn_width=512)).cuda()
    ids = torch.randint(0, 976, layout.piece_BT.shape, device="cuda")
    plan = attention.build_plan(layout, masks.RULES[rule])
    expected = logits_and_gradients(model.double(), ids, layout, plan)
    plan = attention.build_plan(layout, masks.RULES[rule], "flex", blocks)
    found = logits_and_gradients(model.to(dtype), ids, layout, plan)
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("rule", masks.RULES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 6e-2)], ids=["fp32", "bf16"]
)
def test_flex_with_open_summaries_equals_dense_in_the_declared_graphs(
    rule, dtype, tolerance
) -> None:
    """Rows of a training batch: all bars have an open summary, or none has."""
    kernel.compiled_flex.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layout = with_open(random_layout(seed=3, length=600), seed=3, share=1.0)
    blocks = on_cuda(build_blocks(layout, masks.RULES[rule]))
    layout = on_cuda(layout)
    torch.manual_seed(0)
    config = tiny_config(rule=rule, num_layers=6, width=256, ffn_width=512, open_summary_rate=0.5)
    model = MuseFormer(config).cuda()
    ids = torch.randint(0, 976, layout.piece_BT.shape, device="cuda")
    start = NoisedOwn((1, 2))
    plan = attention.build_plan(layout, masks.RULES[rule])
    expected = logits_and_gradients(model.double(), ids, layout, plan, start)
    plan = attention.build_plan(layout, masks.RULES[rule], "flex", blocks)
    found = logits_and_gradients(model.to(dtype), ids, layout, plan, start)
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm()
    shape = BatchShape(2, 600, layout.piece_BS.shape[1])
    declared = Shapes(train=(shape,), score=()).num_graphs(masks.RULES[rule], opened=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == declared


def test_fp32_attention_of_a_bf16_model_returns_to_bf16() -> None:
    layout = random_layout(seed=4)
    rule = masks.RULES["halves"]
    blocks = on_cuda(build_blocks(layout, rule))
    layout = on_cuda(layout)
    model = MuseFormer(tiny_config(num_layers=2, width=256, ffn_width=512)).cuda().bfloat16()
    ids = torch.zeros_like(layout.piece_BT).long()
    plan = attention.build_plan(layout, rule, "flex", blocks)
    workaround = dataclasses.replace(plan, precision=torch.float32)
    found = logits_and_gradients(model, ids, layout, workaround)
    assert all(tensor.dtype == torch.bfloat16 for tensor in found)
