"""The compiled kernel with its backward, on CUDA only; `dense` in float64 judges it."""

import dataclasses

import pytest
import torch

from meloformer.batches.batch import map_tensors
from meloformer.batches.block_plans import build_blocks
from meloformer.model import attention, kernel, masks
from meloformer.model.museformer import MuseFormer
from tests.layouts import as_torch, random_layout, tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_cuda(value):
    return map_tensors(as_torch(value), lambda tensor: tensor.cuda())


def logits_and_gradients(model, ids, layout, plan) -> list[torch.Tensor]:
    model.zero_grad()
    logits = model(ids, layout, plan)
    logits.float().logsumexp(-1).mean().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters())]


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
