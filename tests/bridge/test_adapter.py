"""The adapter: what it begins as, what a bar's closed summary may depend on, and its folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meloformer.bridge.adapter import SummaryAdapter, SummaryAdapterConfig, load_adapter
from meloformer.bridge.bridges import load_bridge
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.errors import CheckpointError, ConfigError
from meloformer.model import attention
from meloformer.model.injection import Injection
from meloformer.model.masks import RULES, rule_of
from meloformer.model.museformer import MuseFormer
from tests.bridge.adapter_folders import random_adapter, write_adapter
from tests.bridge.bridge_folders import SUMMARY_WIDTH, write_bridge
from tests.bridge.text_encoders import WIDTH as TEXT_WIDTH
from tests.bridge.text_encoders import write_qwen3
from tests.generation.test_cache import a_model, some_pieces, step_by_step
from tests.layouts import as_torch, layout_of, random_layout, tiny_config

LENGTH, SLOTS, WIDTH = 160, 128, 32


def pairs(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Own and injected summaries (2, 9, WIDTH)."""
    generator = torch.Generator().manual_seed(seed)
    own, injected = 3 * torch.randn(2, 2, 9, WIDTH, generator=generator, dtype=torch.float64)
    return own.to(dtype), injected.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_a_new_adapter_is_the_blend_to_the_last_bit(alpha: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = SummaryAdapterConfig(summary_width=WIDTH, hidden_width=8, alpha=alpha)
    adapter = SummaryAdapter(config, torch.randn(WIDTH), torch.rand(WIDTH) + 0.1).to(dtype)
    own, injected = pairs(dtype=dtype)
    mask = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    blend = Injection(summaries_BSD=injected, mask_BS=mask, alpha=alpha)
    adapted = Injection(
        summaries_BSD=injected, mask_BS=mask, strategy="adapter", alpha=alpha, adapter=adapter
    )
    found, wanted = (one.streams(own, torch.where(mask, 0, -1)) for one in (adapted, blend))
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


def test_every_weight_learns_once_the_last_layer_speaks() -> None:
    adapter = random_adapter(WIDTH)
    adapter(*pairs()).square().sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().amin() > 0, name


def test_a_bar_is_its_own_affair() -> None:
    adapter = random_adapter(WIDTH).double()
    own, injected = pairs(dtype=torch.float64)
    before = adapter(own, injected)
    for which in (own, injected):
        changed = which.clone()
        changed[1, 4] += 1
        felt = adapter(*(changed if x is which else x for x in (own, injected))) != before
        assert felt[1, 4].all() and felt.sum() == WIDTH


def test_in_bf16_it_says_what_it_says_in_float64_but_for_the_rounding_of_its_inputs() -> None:
    adapter = random_adapter(WIDTH)
    # A mean of many deviations: taken away in bf16, it would take the bar with it.
    adapter.mean_D = torch.full((WIDTH,), 500.0)
    adapter.std_D = torch.ones(WIDTH)
    own, injected = (500 + 8 * x for x in pairs(dtype=torch.bfloat16))
    found = adapter(own, injected)
    assert found.dtype == torch.bfloat16
    wanted = adapter.double()(own.double(), injected.double())
    assert wanted.dtype == torch.float64
    assert torch.allclose(found.double(), wanted, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize(("rule", "layer"), [*((rule, 3) for rule in RULES), ("halves", 0)])
def test_no_token_moves_an_earlier_logit_through_a_trained_adapter(rule: str, layer: int) -> None:
    """Perturbed in float64, in packed rows, with weights that any of it would be heard by."""
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(rule=rule, num_layers=5, width=WIDTH, ffn_width=32)).double()
    for parameter in model.eval().parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    layout = as_torch(random_layout(1, rows=2, length=LENGTH, slots=SLOTS))
    injection = Injection(
        summaries_BSD=torch.randn(2, SLOTS, WIDTH).double(),
        mask_BS=layout.piece_BS >= 0,
        strategy="adapter",
        adapter=random_adapter(WIDTH).double(),
        layer=layer,
    )
    opened = injection.layout(layout)
    plan = attention.build_plan(opened, rule_of(rule))

    @torch.no_grad()
    def logits(ids: Tensor) -> Tensor:
        found: Tensor = model(ids, opened, plan, injection)
        return found

    ids = torch.randint(model.config.vocab_size, (2, LENGTH))
    before, time = logits(ids), torch.arange(LENGTH)
    inside = np.flatnonzero(layout.piece_BT[0].numpy() >= 0)
    num_later = 0
    for place in {0, 1, *np.random.default_rng(3).choice(inside, 4, replace=False).tolist()}:
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % model.config.vocab_size
        felt = (logits(changed) - before).abs().amax(-1) > 1e-9
        is_own = layout.piece_BT[0] == layout.piece_BT[0, place]
        assert felt[0, place] and not felt[1].any()
        assert not felt[0][(time < place) | ~is_own].any(), place
        later = is_own & (layout.bar_BT[0] > layout.bar_BT[0, place])
        num_later += int(felt[0][later].sum())
    assert num_later, "through closed summaries too"


def test_bar_by_bar_generation_equals_parallel_scoring_with_a_trained_adapter() -> None:
    model = a_model(num_layers=5)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    width, pieces = model.config.width, some_pieces(2, bars=2)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, :2] = mask[1, 0] = True
    adapted = Injection(
        summaries_BSD=torch.randn(2, 6, width).double(),
        mask_BS=mask,
        strategy="adapter",
        adapter=random_adapter(width).double(),
    )
    blended = Injection(summaries_BSD=adapted.summaries_BSD, mask_BS=mask)
    for row, found in enumerate(step_by_step(model, pieces, adapted)):
        scored = {}
        for injection in (adapted, blended):
            alone = Injection(
                summaries_BSD=F.pad(injection.summaries_BSD[row : row + 1], (0, 0, 0, SLOTS - 6)),
                mask_BS=F.pad(mask[row : row + 1], (0, SLOTS - 6)),
                strategy=injection.strategy,
                adapter=injection.adapter,
            )
            layout = alone.layout(layout_of(pieces[row]))
            with torch.no_grad():
                plan = attention.build_plan(layout, RULES["halves"])
                ids = torch.from_numpy(pieces[row])[None]
                scored[injection.strategy] = model(ids, layout, plan, alone)[0]
        assert torch.allclose(found, scored["adapter"], atol=1e-11, rtol=0), row
        assert (found - scored["blend"]).abs().amax() > 1e-3, "the adapter is felt at all"


@pytest.mark.parametrize(
    ("wrong", "said"), [({"alpha": 1.5}, "--alpha 1.5"), ({"hidden_width": 0}, "--hidden_width 0")]
)
def test_an_adapter_that_cannot_be_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SummaryAdapterConfig(summary_width=4, **wrong)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bridges of one base, bridge/ and other/, and adapter/ to the first."""
    folder = tmp_path_factory.mktemp("runs")
    encoder = TextEncoder.load(write_qwen3(folder / "encoder"))
    for name, width in (("bridge", 32), ("other", 16)):
        shape = {"num_layers": 1, "num_heads": 2, "ffn_width": 16, "width": width}
        config = QFormerConfig(text_width=TEXT_WIDTH, summary_width=SUMMARY_WIDTH, **shape)
        write_bridge(folder / name / "model", QFormer(config), encoder)
    write_adapter(folder / "adapter", folder / "bridge")
    return folder


def test_a_loaded_adapter_is_the_one_that_was_written_and_knows_its_base_and_its_bridge(
    runs: Path,
) -> None:
    found, bridge = load_adapter(runs / "adapter"), load_bridge(runs / "bridge")
    wanted = random_adapter(SUMMARY_WIDTH)
    assert found.model.config == wanted.config and not found.model.training
    assert torch.equal(found.model.mean_D, bridge.mean_D)
    assert torch.equal(found.model.std_D, bridge.std_D)
    own, injected = torch.randn(2, 1, 5, SUMMARY_WIDTH)
    assert torch.equal(found.model(own, injected), wanted(own, injected))
    assert not found.model(own, injected).requires_grad
    found.check_base("b" * 64)
    found.check_bridge(bridge)


def test_an_adapter_to_another_base_or_another_bridge_is_refused_in_one_line(runs: Path) -> None:
    adapter = load_adapter(runs / "adapter")
    with pytest.raises(CheckpointError, match="found an adapter to the model bbbb") as refusal:
        adapter.check_base("c" * 64)
    assert "\n" not in str(refusal.value)
    with pytest.raises(CheckpointError, match=r"adapter to the qformer \w{12} \(raw") as refusal:
        adapter.check_bridge(load_bridge(runs / "other"))
    assert "\n" not in str(refusal.value)


def test_what_is_no_adapter_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--adapter .*: no such folder; expected a run of"):
        load_adapter(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no adapter in it"):
        load_adapter(tmp_path)
    with pytest.raises(CheckpointError, match=r"'qformer'; allowed: adapter; .*train_adapter\.py"):
        load_adapter(runs / "bridge")
    with pytest.raises(CheckpointError, match="'adapter'; allowed: qformer, diffusion_bridge"):
        load_bridge(runs / "adapter")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bridge": {}}, "bridge: found no facts"),
        ({"hidden_width": 7}, "change.weight"),
        ({"base": None}, "base: found no fingerprint"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(
    runs: Path, tmp_path: Path, values: dict, said: str
) -> None:
    folder = Path(shutil.copytree(runs / "adapter" / "model", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(CheckpointError, match=said):
        load_adapter(folder)
