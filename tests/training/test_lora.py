"""--lora: adapters are trained, the base stays, and what is exported is one plain model."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from meloformer.command_line import parse_flags, run_recipe
from meloformer.errors import ConfigError
from meloformer.model import attention, fused
from meloformer.model.attention import build_plan
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import load_model, load_weights
from meloformer.training.checkpoint import PARTS_NAME, check_files, step_folders
from meloformer.training.config import TrainConfig, resolve
from meloformer.training.lora import (
    TARGETS,
    AdapterConfig,
    add_adapters,
    check_same_adapters,
    merge,
)
from meloformer.training.loss import step_loss
from meloformer.training.metrics import VALIDATION_NAME
from meloformer.training.optimizer import OptimizerName
from meloformer.training.ranks import start_ranks
from tests.layouts import tiny_config
from tests.training.checkpoint_worker import build_engine, save, train, whole
from tests.training.gradient_worker import RULE, global_batch, tiny_model
from tests.training.launching import ROOT, run, torchrun

RANK_4 = AdapterConfig(lora=4)

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="the extra `lora` is not there")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": -1}, "--lora -1: allowed"),
        ({"lora": 4, "lora_alpha": 0.0}, "--lora_alpha 0: allowed: above 0"),
        ({"lora": 4, "lora_targets": ("q_proj",)}, "found q_proj; allowed: query key_value"),
        ({"lora": 4, "lora_targets": ()}, "found none; allowed: query key_value"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdapterConfig(**settings)


def test_adapters_without_a_base_or_beside_a_freeze_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--lora 4 without --init_from.*give --init_from runs/"):
        TrainConfig(adapters=RANK_4)
    with pytest.raises(ConfigError, match="--freeze layers with --lora 4"):
        TrainConfig(adapters=RANK_4, init_from=Path("runs/a"), freeze=("layers",))


def test_without_peft_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    flags = TrainConfig(adapters=RANK_4, init_from=Path("runs/a"), data=("shards",))
    with pytest.raises(ConfigError, match=r"peft is not installed.*: pip install peft$"):
        resolve(flags, "cpu", time_utc="now")
    with pytest.raises(ConfigError, match=r"pip install peft$"):
        add_adapters(tiny_model(), RANK_4)


def test_a_run_goes_on_with_its_own_adapters_only() -> None:
    def settings(**given: object) -> dict:
        return json.loads(json.dumps({"lora": 4, "lora_alpha": None, **given}))

    same = settings(lora_alpha=8.0, lora_targets=TARGETS)
    check_same_adapters(settings(), same)
    check_same_adapters(settings(lora=0), {})
    for asked, known, message in (
        (settings(lora=8), same, "--lora 8 --lora_alpha 16: .* started with --lora 4 --lora_alp"),
        (settings(lora_alpha=4), same, "--lora_alpha 4: .* started with --lora 4 --lora_alpha 8;"),
        (settings(lora_targets=["query"]), same, "8 --lora_targets query: the run .*alpha 8;"),
        (settings(lora=0), same, "^no --lora: the run in --output was started with --lora 4"),
        (settings(), {}, "^--lora 4 --lora_alpha 8: the run in --output was started with no --lo"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_same_adapters(asked, known)


def test_merging_is_the_formula_and_leaves_a_plain_model_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    base, down, up = (torch.randn(n, m, generator=generator) for n, m in ((6, 5), (2, 5), (6, 2)))
    name = "layers.0.query"
    weights = {
        f"{name}.base_layer.weight": base,
        f"{name}.lora_A.default.weight": down,
        f"{name}.lora_B.default.weight": up,
        "final_norm.weight": base[0],
    }
    merged = merge(weights, AdapterConfig(lora=2, lora_alpha=6))
    assert merged.keys() == {f"{name}.weight", "final_norm.weight"}
    expected = base.double() + 3 * up.double() @ down.double()
    torch.testing.assert_close(merged[f"{name}.weight"].double(), expected, atol=1e-5, rtol=0)
    plain = {"layers.0.query.weight": base}
    assert merge(plain, AdapterConfig()) == plain


@needs_peft
@pytest.mark.parametrize(
    ("name", "is_bf16", "optimizer", "num_steps"),
    [
        ("zero2", False, "adamw", 4),
        pytest.param("zero1", True, "adamw", 12, marks=pytest.mark.slow),
        pytest.param("zero2", True, "muon", 12, marks=pytest.mark.slow),
        pytest.param("zero3", False, "adamw", 12, marks=pytest.mark.slow),
    ],
)
def test_adapters_alone_are_trained_and_saved_and_merge_into_what_was_trained(
    name: str, is_bf16: bool, optimizer: OptimizerName, num_steps: int, tmp_path: Path
) -> None:
    ranks = start_ranks("cpu")

    def build():
        return build_engine(
            ranks, name, is_bf16=is_bf16, ema=0.9, optimizer=optimizer, adapters=RANK_4
        )

    engine = build()
    before = engine.full_weights()
    trained = {weight for weight, p in engine.module.named_parameters() if p.requires_grad}
    assert trained == {
        f"layers.{layer}.{target}.lora_{which}.default.weight"
        for layer in range(tiny_model().config.num_layers)
        for target in TARGETS
        for which in "AB"
    }
    num_trained = sum(before[weight].numel() for weight in trained)
    assert engine.gradient_bytes == 4 * num_trained
    plain, start = tiny_model().state_dict(), merge(before, RANK_4)
    assert start.keys() == plain.keys()
    assert all(torch.equal(start[w], plain[w].to(start[w].dtype)) for w in plain)

    losses = train(engine, num_steps)
    assert losses[-1] < losses[0] - 0.01, losses
    after = engine.full_weights()
    assert {w for w in after if not torch.equal(after[w], before[w])} == trained

    ids, _, layout = global_batch()
    plan = build_plan(layout, RULE)
    museformer = tiny_model().to(next(iter(after.values())).dtype)
    museformer.load_state_dict(merge(after, RANK_4))
    with torch.no_grad():
        expected = engine.module(ids, layout, plan).float()
        found = museformer(ids, layout, plan).float()
    tolerance = (2**-6 if is_bf16 else 1e-5) * float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)

    save(engine, tmp_path)
    expected_losses = train(engine, 2)
    again = build()
    train(again, 1)
    again.load(tmp_path)
    assert train(again, 2) == expected_losses


@needs_peft
@pytest.mark.slow
@pytest.mark.distributed
def test_one_rank_two_and_one_again_go_on_with_the_same_adapters(tmp_path: Path) -> None:
    worker, before = str(ROOT / "tests/training/checkpoint_worker.py"), None
    for num_ranks, source, target in ((1, "-", "a"), (2, "a", "b"), (1, "b", "c")):
        done = run([*torchrun(num_ranks), worker, str(tmp_path), source, target, "lora"])
        assert done.returncode == 0, done.stderr[-3000:]
        measured = json.loads((tmp_path / f"{target}.json").read_text())
        assert measured
        for key, found in measured.items():
            if before:
                assert found["difference"] == 0, (target, key)
                assert found["before"] == pytest.approx(before[key]["after"], abs=1e-4), key
        before = measured


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Which graphs there are is settled before a backend, and this one compiles nothing."""
    monkeypatch.setattr(fused, "BACKEND", "eager")
    fused._compiled.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    fused._compiled.cache_clear()
    torch._dynamo.reset()


@needs_peft
@pytest.mark.slow
@pytest.mark.slow
def test_attention_and_fused_parts_see_no_difference_that_would_be_a_graph_more(
    compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, targets, layout = global_batch()
    seen: list[tuple] = []
    for call in ("update", "summarize"):
        plain_call = getattr(attention, call)

        def looked_at(*inputs, plain_call=plain_call):
            heads = [t for t in (*inputs[:3], *(inputs[4] or ())) if torch.is_tensor(t)]
            seen.extend((t.shape, t.stride(), t.dtype, t.requires_grad) for t in heads)
            return plain_call(*inputs)

        monkeypatch.setattr(attention, call, looked_at)

    found = []
    for adapters in (None, RANK_4, AdapterConfig(lora=4, lora_targets=("ffn_out",))):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        seen.clear()
        museformer = MuseFormer(
            tiny_config(num_layers=3, width=32, ffn_width=64, vocab_size=97), fuse=True
        )
        if adapters:
            add_adapters(museformer, adapters)
        logits = museformer(ids, layout, build_plan(layout, RULE))
        step_loss(logits, targets, 1, 1, fuse=True).backward()
        found.append((list(seen), torch._dynamo.utils.counters["stats"]["unique_graphs"]))
    assert found[1] == found[2] == found[0]
    assert found[0][1] == fused.GRAPHS_PER_ROWS and found[0][0]


@needs_peft
@pytest.mark.slow
def test_a_fine_tuned_model_is_its_base_and_the_adapters_that_peft_reads(
    chorale_shards: Path,
    recipe: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base_flags = (
        f"--data {chorale_shards} --config {ROOT}/ds_configs/zero2.json --model_size tiny "
        "--max_seq_len 256 --batch_size 2 --gradient_accumulation_steps 1 --num_workers 0 "
        "--warmup_steps 1 --validation_rows 8 --device cpu --save_every 6"
    ).split()
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    flags = [*base_flags, "--max_steps", "12", "--output", str(base), "--samples", "0"]
    recipe.main(parse_flags(TrainConfig, [*flags, "--learning_rate", "2e-3"]))
    flags = [*base_flags, "--max_steps", "16", "--output", str(tuned), "--learning_rate", "1e-2"]
    flags += ["--init_from", str(base), "--lora", "4", "--ema", "0.5", "--check_gradients", "on"]
    flags += ["--samples", "1"]
    recipe.main(parse_flags(TrainConfig, flags))
    log = (tuned / "train.log").read_text()
    assert re.search(r"--lora 4 --lora_alpha 8: parameters: [\d,]+ trained \([\d.]+%\)", log)
    assert "gradients are those of a single process" in log
    assert list((tuned / "samples").rglob("*.mid"))

    # The same pieces for both.
    scores = [
        json.loads((run / VALIDATION_NAME).read_text().splitlines()[-1]) for run in (base, tuned)
    ]
    assert scores[1]["all"]["per_token"] < scores[0]["all"]["per_token"] - 0.05
    assert scores[1]["ema_all"]["per_token"] < scores[0]["all"]["per_token"]

    before, parts = load_weights(base / "model"), whole(step_folders(tuned)[-1] / PARTS_NAME)
    adapted = {weight for weight in before if set(weight.split(".")) & set(TARGETS)}
    for weight, value in before.items():
        held = weight.replace(".weight", ".base_layer.weight") if weight in adapted else weight
        assert torch.equal(parts[f"weight/{held}"], value.flatten()), weight
    merged, averaged = (load_weights(tuned / model) for model in ("model", "model_ema"))
    assert merged.keys() == averaged.keys() == before.keys()
    assert {weight for weight in merged if not torch.equal(merged[weight], before[weight])} == (
        adapted
    )
    assert all(not torch.equal(averaged[weight], merged[weight]) for weight in adapted)

    step = step_folders(tuned)[-1]
    check_files(step)
    adapter_files = ("adapter_config.json", "adapter_model.safetensors")
    for file in (*(f"adapter/{name}" for name in adapter_files), "model/model.safetensors"):
        assert (step / file).read_bytes() == (tuned / file).read_bytes(), file

    from peft import PeftModel

    read = PeftModel.from_pretrained(load_model(base / "model"), tuned / "adapter").eval()
    ids, _, layout = global_batch()
    plan = build_plan(layout, RULE)
    with torch.no_grad():
        expected = load_model(tuned / "model")(ids, layout, plan)
        found = read(ids, layout, plan)
        untuned = load_model(base / "model")(ids, layout, plan)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert float((untuned - expected).abs().max()) > 0.05
    by_peft = read.merge_and_unload().state_dict()
    for weight, value in merged.items():
        torch.testing.assert_close(by_peft[weight], value, atol=1e-6, rtol=0)

    shutil.rmtree(step)
    recipe.main(parse_flags(TrainConfig, [*flags, "--resume", "auto"]))
    again = load_weights(tuned / "model")
    assert all(torch.equal(again[weight], merged[weight]) for weight in merged)
    assert (tuned / "adapter").is_dir() and not list(tuned.glob("*.superseded"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_recipe(recipe.main, TrainConfig, [*flags, "--lora", "8", "--resume", "auto"])
    assert "--lora 8 --lora_alpha 16: the run in --output was started" in capsys.readouterr().err
