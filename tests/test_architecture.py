"""Who may import whom, and what the core runs without."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "meloformer"

# A stage may import itself, what stands here, and what is everybody's.
EVERYBODYS = ("errors", "command_line", "file_sums", "interrupts", "plurals", "progress")
ALLOWED = {
    "midi": set(),
    "tokens": {"midi"},
    "shards": {"midi", "tokens"},
    "batches": {"midi", "tokens", "shards"},
    "model": set(),
    "box": set(),  # weights and their card
    "training": {"midi", "tokens", "shards", "batches", "model"},
    "bridge": {"midi", "tokens", "shards", "batches", "model"},
    "bridge_training": {
        "midi",
        "tokens",
        "shards",
        "batches",
        "model",
        "training",
        "captions",
        "bridge",
    },
    "captions": {"midi", "tokens", "shards"},
    "generation": {"midi", "tokens", "model", "bridge"},
    "evaluation": {
        "midi",
        "tokens",
        "shards",
        "batches",
        "model",
        "training",
        "captions",
        "bridge",
        "bridge_training",
        "generation",
    },
    "demo": {
        "midi",
        "tokens",
        "shards",
        "model",
        "captions",
        "bridge",
        "generation",
        "evaluation",
    },
}
# What others hold in their hands: the model, its tokens, its pieces and what its run knows of it.
ALLOWED["hub"] = {*ALLOWED["generation"], "generation", "shards", "batches", "training"}
# It calls the recipes by their words, as an installed package has them.
ALLOWED["release"] = {"midi", "tokens", "model", "bridge", "__main__"}
ALLOWED["benchmarks"] = {*ALLOWED["evaluation"], "evaluation"}
# batches reads the rules to build block plans, and nothing else of the model.
EXCEPTIONS = {("batches", "meloformer.model.masks"), ("batches", "meloformer.model")}


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
            if node.module.count(".") == 1:  # from meloformer.model import masks
                modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("stage", sorted(p.name for p in PACKAGE.iterdir() if p.is_dir()))
def test_imports_run_one_way(stage: str) -> None:
    if stage.startswith("__"):
        return
    assert stage in ALLOWED, f"{stage} has no place in the order of stages"
    for path in (PACKAGE / stage).rglob("*.py"):
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] != "meloformer" or len(parts) < 2:
                continue
            other = parts[1]
            if other in (stage, *EVERYBODYS) or other in ALLOWED[stage]:
                continue
            only_masks = (stage, module) in EXCEPTIONS or module.startswith(
                "meloformer.model.masks."
            )
            assert only_masks, f"{path.relative_to(ROOT)} imports {module}"


def test_batches_take_nothing_but_the_masks_of_the_model() -> None:
    for path in (PACKAGE / "batches").rglob("*.py"):
        of_model = {m for m in imported_modules(path) if m.startswith("meloformer.model.")}
        assert all(m.startswith("meloformer.model.masks") for m in of_model), (path, of_model)


def test_only_the_engine_imports_deepspeed() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(m.split(".")[0] == "deepspeed" for m in imported_modules(path))
    }
    # gradients.py is the engine's own: where DeepSpeed keeps what the engine ends and forgets.
    assert users <= {"training/engine.py", "training/gradients.py"}


def test_only_the_adapters_import_peft_and_not_before_somebody_wants_some() -> None:
    users = {path for path in PACKAGE.rglob("*.py") if "peft" in imported_modules(path)}
    assert users == {PACKAGE / "training/lora.py"}
    (path,) = users
    body = ast.parse(path.read_text()).body
    first = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert first and not any("peft" in line for line in first)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import meloformer"],
        pytest.param(
            ["-c", "import meloformer.hub.export, meloformer.generation.wishes"],
            marks=pytest.mark.slow,
        ),
        ["launch/generate.py", "-h"],
        ["launch/demo.py", "-h"],
        ["launch/shard_data.py", "-h"],
    ],
)
def test_the_core_runs_without_the_extras(arguments: list[str], tmp_path: Path) -> None:
    """The packages of every extra are not found, as in a core installation."""
    extras = (
        "deepspeed",
        "webdataset",
        "music21",
        "accelerate",
        "tensorboard",
        "psutil",
        "pyarrow",
        "fsspec",
        "aiohttp",
        "ray",
        "peft",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "libsonare",
    )
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def find_spec(name, path=None, target=None):\n"
        f"    if name.split('.')[0] not in {extras!r}:\n"
        "        return find(name, path, target)\n"
        "PathFinder.find_spec = find_spec\n"
    )
    # torch itself may look for tensorboard and accelerate lazily; importing must not need them.
    outcome = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stderr


def test_files_stay_readable() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        length = len(path.read_text().splitlines())
        assert length <= 400, f"{path.relative_to(ROOT)}: {length} lines, allowed 400"


def test_the_wheel_carries_every_package_the_recipes_and_the_partitionings() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'^  "(meloformer[\w.]*)",$', text, re.MULTILINE))
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")}
    packages = {".".join(folder.parts) for folder in folders}
    recipes = {path.parent.relative_to(ROOT) for path in (ROOT / "launch").rglob("*.py")}
    packages |= {".".join(("meloformer", *folder.parts)) for folder in recipes}
    assert listed == packages | {"meloformer.ds_configs", "meloformer.box"}
