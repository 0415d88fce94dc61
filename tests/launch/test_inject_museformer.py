"""launch/inject_museformer.py on files of summaries."""

from pathlib import Path

import pytest
import torch
from miditoolkit import MidiFile

from meloformer.bridge.bridge_folder import BridgeFacts, save_bridge
from meloformer.bridge.text_to_summaries import save_summaries
from meloformer.command_line import run_recipe
from meloformer.model.weights import model_fingerprint, save_model
from meloformer.tokens.vocabulary import fingerprint
from tests.bridge.adapter_folders import random_adapter
from tests.bridge.bases import random_base
from tests.launch.recipes import load_recipe

WIDTH = 32
# Bars of random weights are long where everybody plays.
ONE_PLAYER = ("--instruments", 0)
ADAPTED = ("--strategy", "adapter", "--adapter")


def base_run(folder: Path, **changes: object) -> Path:
    model = random_base(width=WIDTH, ffn_width=32, **changes)
    save_model(folder / "model", model.config, model.state_dict(), {"tokenizer": fingerprint()})
    return folder


def adapter_run(folder: Path, base_fingerprint: str) -> Path:
    """Of an adapter of random weights to a bridge that nobody has any more."""
    adapter = random_adapter(WIDTH)
    facts = BridgeFacts.of(
        adapter,
        base={"fingerprint": base_fingerprint, "width": WIDTH},
        encoder={"fingerprint": "e" * 64, "name": "minilm"},
        mean_D=adapter.mean_D,
        std_D=adapter.std_D,
    ).with_extra(
        bridge={"model_type": "diffusion_bridge", "weights": "ema", "fingerprint": "c" * 64}
    )
    save_bridge(folder / "model", facts, adapter.state_dict())
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_run(tmp_path_factory.mktemp("run"), open_summary_rate=0.3)


@pytest.fixture
def summaries(tmp_path: Path) -> Path:
    """Of three bars."""
    path = tmp_path / "summary_tokens.pt"
    torch.manual_seed(0)
    save_summaries(path, torch.randn(3, WIDTH))
    return path


@pytest.fixture
def inject(capsys: pytest.CaptureFixture[str]):
    """Exit code, stdout and stderr of the recipe."""
    recipe = load_recipe("inject_museformer.py")

    def inject_(*flags: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_recipe(recipe.main, recipe.InjectMuseformerConfig, [*map(str, flags)])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return inject_


def test_a_piece_of_as_many_bars_as_summaries_is_written_as_midi_and_picture(
    checkpoint, summaries, inject, tmp_path
) -> None:
    given = ("--checkpoint", checkpoint, "--summaries", summaries, *ONE_PLAYER)
    output = tmp_path / "new" / "a.mid"
    code, said, complaint = inject(*given, "--output", output, "--num_samples", 2)
    assert code == 0, complaint
    assert "on summary_tokens.pt: 3 bars" in said and "2 to sample" in said
    names = ["a-0.mid", "a-0.png", "a-1.mid", "a-1.png"]
    assert sorted(path.name for path in output.parent.iterdir()) == names
    for number in range(2):
        midi = MidiFile(str(output.with_stem(f"a-{number}")))
        assert sum(len(track.notes) for track in midi.instruments) > 0
        assert output.with_name(f"a-{number}.png").read_bytes().startswith(b"\x89PNG")


def test_strategy_alpha_and_the_summaries_decide_what_is_written(
    checkpoint, summaries, inject, tmp_path
) -> None:
    """One seed throughout, so that what differs comes from the summaries."""
    other = tmp_path / "other.pt"
    save_summaries(other, -5 * torch.load(summaries, weights_only=True))

    def written(file: Path, *flags: object) -> bytes:
        output = tmp_path / "a.mid"
        given = ("--checkpoint", checkpoint, "--output", output, "--bars", 2, *ONE_PLAYER)
        code, _, complaint = inject(*given, "--summaries", file, *flags)
        assert code == 0, complaint
        return output.read_bytes()

    replaced = written(summaries, "--strategy", "replace")
    assert replaced == written(summaries, "--strategy", "blend", "--alpha", 1)
    assert replaced != written(other, "--strategy", "replace")
    run = adapter_run(tmp_path / "adapter", model_fingerprint(checkpoint / "model"))
    adapted = written(summaries, *ADAPTED, run)
    assert adapted not in (replaced, written(summaries), written(other, *ADAPTED, run))


def test_what_cannot_be_injected_ends_in_one_line_and_code_2(
    checkpoint, summaries, inject, tmp_path
) -> None:
    wide, long, junk = (tmp_path / f"{name}.pt" for name in ("wide", "long", "junk"))
    save_summaries(wide, torch.zeros(3, WIDTH + 1))
    save_summaries(long, torch.zeros(161, WIDTH))
    junk.write_bytes(b"no tensor")
    closed = base_run(tmp_path / "closed", num_layers=1)
    stranger = adapter_run(tmp_path / "stranger", "b" * 64)
    given = ["--checkpoint", checkpoint, "--output", tmp_path / "a.mid"]
    for flags, said in (
        (["--summaries", wide], "found a tensor of (3, 33); expected one tensor of 1 to 160 bars"),
        (["--summaries", long], "found a tensor of (161, 32); expected"),
        (["--summaries", junk], "cannot be read"),
        (["--summaries", tmp_path / "absent.pt"], "cannot be read"),
        (["--summaries", summaries, "--bars", 4], "--bars 4: found summaries of 3 bars; allowed"),
        (["--summaries", summaries, "--checkpoint", closed], "--open_summary_rate 0"),
        (["--summaries", summaries, "--checkpoint", tmp_path / "absent"], "no such folder"),
        (["--summaries", summaries, "--strategy", "adapter"], "without --adapter: allowed: the"),
        (["--summaries", summaries, "--adapter", checkpoint], "with --strategy blend: allowed"),
        (["--summaries", summaries, *ADAPTED, checkpoint], "'museformer'; allowed: adapter"),
        (["--summaries", summaries, *ADAPTED, tmp_path / "absent"], "--adapter"),
        (["--summaries", summaries, *ADAPTED, stranger], "found an adapter to the model bbbbbbbb"),
        (["--summaries", summaries, "--strategy", "add"], "add"),
        (["--summaries", summaries, "--alpha", 2], "--alpha 2: allowed 0 to 1"),
        (["--summaries", summaries, "--seed", -1], "--seed -1: allowed"),
        ([], "--summaries"),
    ):
        code, _, complaint = inject(*given, *flags)
        assert code == 2 and said in complaint, (flags, complaint)
        assert complaint.count("\n") == 1
    assert not list(tmp_path.glob("*.mid")) and not list(tmp_path.glob("*.png"))


def test_a_file_name_that_looks_like_markup_or_a_formula_is_taken_as_it_is(
    checkpoint, summaries, inject, tmp_path
) -> None:
    odd = summaries.rename(tmp_path / "[b] $x^$.pt")
    given = ("--checkpoint", checkpoint, "--output", tmp_path / "a.mid", "--bars", 1, *ONE_PLAYER)
    code, said, complaint = inject(*given, "--summaries", odd)
    assert code == 0, complaint
    assert "on [b] $x^$.pt: 1 bar," in said
