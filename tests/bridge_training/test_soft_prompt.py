"""Answers that enter at the base's input: what is refused, and that the base alone trains them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meloformer.batches.collate import collate_rows
from meloformer.bridge.bridges import load_bridge
from meloformer.bridge.extraction import WindowSettings, base_facts, extract
from meloformer.bridge.qformer import QFormer
from meloformer.bridge.summarising import bare_window, count_bars, row_length
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge_training.loop import train
from meloformer.bridge_training.objectives import ContrastiveConfig
from meloformer.bridge_training.outlook import outlook
from meloformer.bridge_training.prepare import BridgeKind, prepare
from meloformer.bridge_training.qformer import QFormerTrainConfig, statistics_of_input
from meloformer.captions.build import build_captions
from meloformer.captions.settings import CaptionSettings
from meloformer.command_line import parse_flags
from meloformer.errors import ConfigError
from meloformer.model.attention import build_plan
from meloformer.model.injection import Injection, NoisedOwn
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import load_model, model_fingerprint, save_model
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training.loss import token_nats
from tests.bridge.text_encoders import write_qwen3
from tests.layouts import tiny_config

PATHS: dict[str, Any] = {"targets": Path("targets"), "captions": Path("captions.jsonl")}
BASE: dict[str, Any] = {"checkpoint": Path("runs/base"), "data": "data_shards/name"}
MAX_BARS, ROWS = 4, 4
ALPHA = 0.9


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"inject_after": 2}, "--inject_after 2: allowed: 3, whose summaries .* or 0, the input"),
        ({"inject_after": 0}, r"--inject_after 0, --token_loss_weight 1\) without --checkpoint"),
        ({"inject_after": 0, "checkpoint": Path("a")}, r"without --data; allowed"),
        ({"token_loss_weight": 0.5}, r"--token_loss_weight 0.5\) without --checkpoint"),
        (
            {"inject_after": 0, "regression_weight": 0.5, **BASE},
            "--regression_weight 0.5 with --inject_after 0: found no summaries at the input",
        ),
        (
            {"inject_after": 0, "contrastive": ContrastiveConfig(contrastive_weight=0.1), **BASE},
            "--contrastive_weight 0.1 with --inject_after 0: found no summaries",
        ),
        (
            {"inject_after": 0, "token_loss_weight": 0, **BASE},
            r"nothing beside it to learn from \(--inject_after 0, --regression_weight 0\)",
        ),
        ({"regression_weight": 0}, "--token_loss_weight 0 with nothing beside it"),
        ({"regression_weight": -1}, "--regression_weight -1: allowed: 0 or more"),
        ({"token_loss_weight": float("nan")}, "--token_loss_weight nan: allowed: 0 or more"),
        (
            {"token_loss_weight": 1, "token_loss_alpha": 1.5, **BASE},
            "--token_loss_alpha 1.5: allowed: 0 to 1",
        ),
        ({"token_loss_alpha": float("nan")}, "--token_loss_alpha nan: allowed: 0 to 1"),
        ({"token_loss_alpha": 0.5}, "--token_loss_alpha 0.5 without a token loss: allowed"),
    ],
)
def test_losses_that_nothing_can_be_learned_from_are_refused_in_one_line(
    flags: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        QFormerTrainConfig(**PATHS, **flags)
    assert "\n" not in str(refusal.value)


def test_the_input_is_trained_by_the_base_alone_and_layer_3_by_the_targets_unless_told() -> None:
    def weights(**flags: Any) -> list[float]:
        settings = QFormerTrainConfig(**PATHS, **BASE, **flags).kind.objective_settings
        names = ("regression_weight", "contrastive_weight", "token_loss_weight", "inject_after")
        return [settings[name] for name in names]

    assert weights() == [1, 0.1, 0, 3]
    assert weights(inject_after=0) == [0, 0, 1, 0]
    assert weights(regression_weight=0, token_loss_weight=2) == [0, 0, 2, 3]
    asked = ContrastiveConfig(contrastive_weight=0.2)
    assert weights(regression_weight=0, token_loss_weight=1, contrastive=asked) == [0, 0.2, 1, 3]


def test_the_blend_of_the_token_loss_is_written_down() -> None:
    def kind(**flags: Any) -> BridgeKind:
        return QFormerTrainConfig(**PATHS, **BASE, **flags).kind

    assert kind().extra == {}
    usual = kind(token_loss_weight=1)
    assert usual.extra == {"token_loss_alpha": Injection.alpha}
    other = kind(token_loss_weight=1, token_loss_alpha=0.25)
    assert other.extra == {"token_loss_alpha": 0.25}
    # A resumed run has to share it, and runs that are older than the flag go on.
    assert other.objective_settings == {**usual.objective_settings, "token_loss_alpha": 0.25}


def test_answers_at_the_input_have_the_deviation_of_what_summaries_begin_as(tmp_path: Path) -> None:
    model = MuseFormer(tiny_config())
    save_model(tmp_path, model.config, model.state_dict())
    mean_D, std_D = statistics_of_input(tmp_path)
    assert mean_D.shape == std_D.shape == (model.config.width,) and not mean_D.any()
    assert float(std_D.min()) == float(std_D.max())
    assert float(std_D[0]) == pytest.approx(
        float(model.summary_start.detach().square().mean().sqrt())
    )


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, chorale_shards: Path) -> Path:
    """base/ that has learned a little, its targets/, captions.jsonl and encoder/."""
    folder = tmp_path_factory.mktemp("road")
    shards = ShardFolder.open(chorale_shards)
    model = trained_base(shards)
    metadata = {"tokenizer": fingerprint()}
    save_model(folder / "base" / "model", model.config, model.state_dict(), metadata)
    windows = WindowSettings(max_bars=MAX_BARS, overlap=0)
    of_base = base_facts(model, folder / "base", model_fingerprint(folder / "base" / "model"))
    extract(model, of_base, shards, folder / "targets", windows)
    captions = CaptionSettings(
        max_bars=MAX_BARS,
        overlap=0,
        max_seq_len=model.config.max_seq_len,
        num_captions=1,
        languages=("en",),
    )
    build_captions(str(chorale_shards), folder / "captions.jsonl", captions)
    # Its tokenizer knows few words: captions are many tokens.
    write_qwen3(folder / "encoder", max_tokens=1024)
    return folder


def trained_base(shards: ShardFolder) -> MuseFormer:
    """A model of 32 dimensions after some steps, with open summaries in half of its rows."""
    torch.manual_seed(0)
    shape = {"width": 32, "ffn_width": 64, "num_layers": 4, "max_seq_len": 512}
    model = MuseFormer(tiny_config(**shape, open_summary_rate=0.5))
    index, draws = shards.split("train"), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(80):
        windows = []
        for piece in draws.choice(index.num_pieces, ROWS):
            starts = index.bar_starts(int(piece))
            first = int(draws.integers(max(len(starts) - MAX_BARS, 1)))
            last = min(first + MAX_BARS, len(starts) - 1)
            windows.append(bare_window(index.read(int(piece)), starts, first, last))
        length = row_length(max(map(len, windows)), MAX_BARS)
        seeds = [ROWS * step + row if row % 2 else None for row in range(ROWS)]
        batch = collate_rows([[ids] for ids in windows], length, open_seeds=seeds)
        plan = build_plan(batch.layout, rule_of(model.config.rule))
        logits = model(batch.ids_BT, batch.layout, plan, NoisedOwn.of(seeds))
        optimizer.zero_grad()
        (token_nats(logits, batch.targets_BT).sum() / batch.num_targets).backward()
        optimizer.step()
    return model.eval()


def nats_of_window(model: MuseFormer, ids: np.ndarray, summaries_SD: torch.Tensor | None) -> float:
    """Nats of all tokens of a window but the first, with answers at the input or with none."""
    length = row_length(len(ids), count_bars(ids))
    batch = collate_rows([[ids]], length, open_seeds=None if summaries_SD is None else [0])
    injection = None
    if summaries_SD is not None:
        is_open_BS = batch.layout.piece_BS >= 0
        slots = torch.zeros(1, is_open_BS.shape[1], summaries_SD.shape[1])
        slots[0, : len(summaries_SD)] = summaries_SD
        injection = Injection(
            summaries_BSD=slots, mask_BS=is_open_BS, strategy="blend", alpha=ALPHA, layer=0
        )
    plan = build_plan(batch.layout, rule_of(model.config.rule))
    with torch.no_grad():
        chances = model(batch.ids_BT, batch.layout, plan, injection)[0].double().log_softmax(-1)
    return -float(chances[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:].astype(int))].sum())


@pytest.mark.slow
def test_a_soft_prompt_lowers_the_nats_of_the_pieces_that_its_texts_speak_of(
    road: Path, chorale_shards: Path, words: Callable[..., list[str]]
) -> None:
    flags = parse_flags(
        QFormerTrainConfig,
        words(
            road / "run",
            targets=road / "targets",
            captions=road / "captions.jsonl",
            text_encoder=road / "encoder",
            checkpoint=road / "base",
            data=chorale_shards,
            inject_after=0,
            token_loss_alpha=ALPHA,
            max_steps=300,
            learning_rate=3e-3,
            batch_size=ROWS,
            dropout=0,
            validate_every=20,
            save_every=0,
        ),
    )
    prepared = prepare(flags, flags.kind)
    assert "at the input, a soft prompt" in [*outlook(prepared).columns[1].cells]
    assert isinstance(prepared.bridge, QFormer)
    untrained = copy.deepcopy(prepared.bridge).eval()
    assert train(prepared) == 0
    lines = (road / "run" / "validation.jsonl").read_text().splitlines()
    scores = [json.loads(line) for line in lines]
    assert all(one["loss"] == one["nats_per_token"] for one in scores)
    assert {"regression", "contrastive"}.isdisjoint(scores[-1])
    assert scores[-1]["loss"] < scores[0]["loss"]

    # The folder alone gives the same figure: layer, blend, scale, a mean over tokens, not batches.
    bridge = load_bridge(road / "run")
    assert bridge.layer == 0 and bridge.token_loss_alpha == ALPHA
    model, encoder = load_model(road / "base" / "model"), TextEncoder.load(road / "encoder")
    nats = {"none": 0.0, "untrained": 0.0, "trained": 0.0}
    num_targets = 0
    valid = prepared.valid
    for row in valid.rows_in_order():
        text, (ids,) = valid.states.texts[row.text].text, valid.batch([row]).tokens
        states = encoder.encode([text])
        (answer_SD,) = bridge.summaries(states, count_bars(ids))
        (first_SD,) = untrained.sample(states, count_bars(ids), seed=0) * bridge.std_D
        nats["none"] += nats_of_window(model, ids, None)
        nats["untrained"] += nats_of_window(model, ids, first_SD)
        nats["trained"] += nats_of_window(model, ids, answer_SD)
        num_targets += len(ids) - 1
    per_token = {name: total / num_targets for name, total in nats.items()}
    assert per_token["trained"] == pytest.approx(scores[-1]["nats_per_token"], rel=1e-4)
    assert per_token["trained"] < per_token["untrained"] - 0.005, per_token
    assert per_token["trained"] < per_token["none"], per_token
