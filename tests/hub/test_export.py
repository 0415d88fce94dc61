"""Exports: any run to a folder that others load, whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from meloformer.command_line import parse_flags, run_recipe
from meloformer.errors import CheckpointError, ConfigError
from meloformer.hub import HIDTokenizer, MuseFormerForCausalLM
from meloformer.hub.card import model_card
from meloformer.hub.export import check_same, export_folder
from meloformer.hub.probe import probe_ids
from meloformer.hub.run_facts import RunFacts, run_facts
from meloformer.model.box import BOX, CARD_NAME
from meloformer.model.weights import load_weights
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import KIND_OF, Kind
from meloformer.training.checkpoint import MANIFEST_NAME, sum_files
from meloformer.training.config import TrainConfig
from meloformer.training.data import manifest_sum
from meloformer.training.run_folder import Run
from tests.hub.folders import a_model, write_model
from tests.launch.recipes import load_recipe

ROOT = Path(__file__).parents[2]
NATS = {"per_token": 1.5, "per_note": 4.25, "per_kind": {}, "num_targets": 900, "num_notes": 300}


def write_run(
    folder: Path, data: str | list[str] = "absent", manifest_sha256: str = "0" * 64
) -> Path:
    """A run folder: weights of step 7, averaged ones, a sealed step 5, run.json, validations."""
    raw, averaged = a_model(), a_model(seed=1)
    write_model(folder / "model", raw)
    write_model(folder / "model_ema", averaged)
    step = folder / "checkpoints" / "step-5"
    write_model(step / "model", a_model(seed=2), step=5)
    (step / MANIFEST_NAME).write_text(json.dumps({"files": sum_files(step)}))
    settings = {"data": data, "data_weights": [], "model_size": "tiny", "seed": 4, "freeze": []}
    settings |= {"output": "/home/somebody/runs/x", "optimizer": {"optimizer": "muon"}}
    start = {"command": ["train.py", "--wandb", "secret"], "world_size": 2, "device": "cpu"}
    Run(
        run_id="r",
        settings=settings,
        global_batch=48,
        num_steps=7,
        manifest_sha256=manifest_sha256,
        starts=[{**start, "versions": {"torch": "2.13.0"}}],
    ).save(folder)
    lines = [{"step": step, "all": NATS, "none": NATS, "ema_all": NATS} for step in (5, 7, 9)]
    lines[1]["all"] = {**NATS, "per_token": 1.25}
    lines[2]["all"] = {**NATS, "per_token": 9.0}
    (folder / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, chorale_shards: Path) -> Path:
    shards = ShardFolder.open(chorale_shards)
    folder = tmp_path_factory.mktemp("runs") / "night"
    return write_run(folder, str(chorale_shards), shards.manifest_sha256)


def recipe(*arguments: object) -> int:
    module = load_recipe("export.py")
    with pytest.raises(SystemExit) as ended:
        run_recipe(module.main, module.ExportConfig, list(map(str, arguments)))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("checkpoint", "weights", "source"),
    [
        ("", "raw", "model"),
        ("", "ema", "model_ema"),
        ("checkpoints/step-5", "raw", "checkpoints/step-5/model"),
        ("model", "raw", "model"),
    ],
)
def test_a_run_a_step_or_a_model_becomes_a_folder_with_its_weights(
    run, tmp_path, capsys, checkpoint, weights, source
) -> None:
    output = tmp_path / "new" / "mine"
    code = recipe("--checkpoint", run / checkpoint, "--weights", weights, "--output", output)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "equal to the last bit" in said.out
    assert {path.name for path in output.iterdir()} == {
        "README.md",
        "config.json",
        "hid_vocabulary.json",
        "model.safetensors",
        "tokenizer_config.json",
    }
    for name in ("config.json", "model.safetensors"):
        assert (output / name).read_bytes() == (run / source / name).read_bytes()
    assert isinstance(AutoModelForCausalLM.from_pretrained(output), MuseFormerForCausalLM)
    assert not list(output.parent.glob(".*"))


def test_nothing_is_written_over_and_refusals_are_one_line(run, tmp_path, capsys) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("keep")
    for arguments, message in (
        (["--checkpoint", run, "--output", taken], "found something there"),
        (["--checkpoint", tmp_path / "absent", "--output", tmp_path / "a"], "no such folder"),
        (["--checkpoint", run / "checkpoints/step-5", "--weights", "ema", "--output", "b"], "ema"),
    ):
        assert recipe(*arguments) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and message in said[0]
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_a_hidden_folder_of_the_same_name_is_left_alone(run, tmp_path) -> None:
    own = tmp_path / ".mine" / "key"
    own.parent.mkdir()
    own.write_text("keep")
    export_folder(run / "model", tmp_path / "mine")
    assert own.read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "mine"]


def test_a_folder_without_a_run_keeps_its_card_unless_another_is_asked_for(
    tmp_path, capsys
) -> None:
    assert recipe("--checkpoint", BOX, "--output", tmp_path / "box") == 0
    assert "the card is that which the folder has" in capsys.readouterr().out
    own = (BOX / CARD_NAME).read_text()
    assert (tmp_path / "box" / CARD_NAME).read_text() == own
    assert recipe("--checkpoint", tmp_path / "box", "--output", tmp_path / "again") == 0
    assert (tmp_path / "again" / CARD_NAME).read_text() == own
    asked = ("--licence", "cc-by-4.0")
    assert recipe("--checkpoint", BOX, "--output", tmp_path / "new", *asked) == 0
    assert ModelCard.load(tmp_path / "new" / CARD_NAME).data.license == "cc-by-4.0"


def test_a_damaged_checkpoint_is_no_export(run, tmp_path) -> None:
    step = tmp_path / "step-5"
    write_model(step / "model", a_model(seed=2), step=5)
    manifest = json.loads((run / "checkpoints/step-5" / MANIFEST_NAME).read_text())
    manifest["files"]["model/model.safetensors"]["sha256"] = "1" * 64
    (step / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is damaged"):
        export_folder(step / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_loads_as_something_else_is_found_out(tmp_path) -> None:
    model = MuseFormerForCausalLM.of(a_model())
    model.save_pretrained(tmp_path)
    HIDTokenizer().save_pretrained(tmp_path)
    assert check_same(tmp_path, model) == probe_ids().numel() * model.settings.vocab_size
    changed = dict(load_weights(tmp_path))
    changed["final_norm.weight"] = changed["final_norm.weight"] * 1.0001
    other = a_model()
    other.load_state_dict(changed)
    write_model(tmp_path, other)
    with pytest.raises(CheckpointError, match="logits differ"):
        check_same(tmp_path, model)


def test_the_probe_has_tokens_of_every_kind_that_a_bar_can_have() -> None:
    kinds = set(KIND_OF[probe_ids()[0].numpy()].tolist())
    assert kinds >= {*map(int, Kind)} - {int(Kind.KEY), int(Kind.DENSITY)}


def test_a_disk_that_refuses_leaves_nothing(run, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        export_folder(run / "model", tmp_path / "file" / "out")


def header_of(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_says_what_the_run_knows_and_no_path_nor_command(run) -> None:
    facts = run_facts(run / "model")
    text = model_card("night", a_model().config, facts, licence="CC-BY-4.0")
    assert header_of(text)["license"] == "cc-by-4.0"
    assert ModelCard(text).data.library_name == "transformers"
    assert "1.2500" in text and "9.0000" not in text
    train = facts.manifests[0].splits["train"]
    assert f"{sum(shard.pieces for shard in train):,} pieces" in text
    assert "| optimizer | muon |" in text and "| rows of a step | 48 |" in text
    for private in ("/home", "somebody", "--wandb", "secret", str(run)):
        assert private not in text


def test_the_card_names_what_is_not_known(tmp_path) -> None:
    lost = run_facts(write_run(tmp_path / "lost") / "model")
    text = model_card("lost", a_model().config, lost)
    assert lost.manifests is None and "not at hand" in text and "`absent`" in text
    assert header_of(text)["license"] == "unknown" and "Nobody has said" in text
    alone = write_model(tmp_path / "alone", a_model())
    text = model_card("alone", a_model().config, run_facts(alone))
    assert "Not known: no run.json" in text and "Not measured" in text


def test_shards_that_have_changed_since_are_not_called_the_data_of_the_run(
    chorale_shards, tmp_path
) -> None:
    facts = run_facts(write_run(tmp_path, str(chorale_shards)) / "model")
    assert facts.manifests is None and facts.data == (chorale_shards.name,)


@pytest.mark.parametrize("is_older", [False, True])
def test_a_run_over_several_folders_knows_the_shards_of_each(
    chorale_shards, tmp_path, is_older
) -> None:
    names, folders = [str(chorale_shards)] * 2, [ShardFolder.open(chorale_shards)] * 2
    data = " ".join(names) if is_older else names
    facts = run_facts(write_run(tmp_path, data, manifest_sum(folders, (1.0, 1.0))) / "model")
    assert facts.data == (chorale_shards.name,) * 2
    assert facts.manifests is not None and len(facts.manifests) == 2


def test_averaged_weights_are_given_their_own_likelihoods(run) -> None:
    facts = run_facts(run / "model_ema")
    assert facts.weights == "ema" and set(facts.scores) == {"all"}
    assert facts.scores["all"] == NATS and facts.scored_step == 7


def test_words_of_strangers_cannot_break_the_card() -> None:
    text = model_card("a | b\n---\n<script>", a_model().config, RunFacts(weights="raw"))
    assert "<script>" not in text.replace("`<folder>`", "")
    assert "# a / b --- (script)" in text and torch.is_tensor(probe_ids())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_runs_of_every_stage_are_exported_whole(stage, chorale_shards, tmp_path) -> None:
    train, output = load_recipe("train.py"), tmp_path / "run"
    flags = (
        f"--data {chorale_shards} --config {ROOT}/ds_configs/{stage}.json --model_size tiny "
        "--max_seq_len 256 --batch_size 2 --gradient_accumulation_steps 1 --num_workers 0 "
        "--learning_rate 1e-3 --warmup_steps 1 --validation_rows 2 --device cpu --samples 0 "
        f"--max_steps 3 --save_every 2 --output {output}"
    )
    train.main(parse_flags(TrainConfig, flags.split()))
    for source in (output / "model", output / "checkpoints/step-2/model"):
        done = export_folder(source, tmp_path / f"of-{source.parent.name}")
        assert (done.folder / "model.safetensors").read_bytes() == (
            source / "model.safetensors"
        ).read_bytes()
        text = (done.folder / "README.md").read_text()
        # The run scores its last step; the one before has a likelihood of its own, or none.
        assert ("nats per token" in text) == bool(done.facts.scores)
        assert "pieces of" in text and done.num_probed
