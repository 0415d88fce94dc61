import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from meloformer.errors import ConfigError
from meloformer.training.compile_cache import INDUCTOR, TRITON, use_compile_cache, version_key
from tests.training.launching import ENVIRONMENT, ROOT, TIME_LIMIT_SECONDS

CPU = torch.device("cpu")


def test_code_is_kept_in_the_users_own_folder_by_version_and_device(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    line = use_compile_cache(None, CPU, environment)
    folder = tmp_path / "meloformer" / "compiled" / version_key(CPU)
    assert environment[INDUCTOR] == str(folder) and environment[INDUCTOR] in line
    assert environment[TRITON] == str(folder / "triton")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "what lies there is run as code"
    assert torch.__version__.split("+")[0] in folder.name and "cpu" in folder.name


def test_folders_that_the_environment_names_stay(tmp_path: Path) -> None:
    mine = {INDUCTOR: "/mine", TRITON: "/other"}
    environment = dict(mine)
    use_compile_cache(tmp_path / "absent", CPU, environment)
    assert environment == mine and not (tmp_path / "absent").exists()


def test_a_folder_that_torch_has_named_itself_is_nobodys_wish(tmp_path: Path) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    environment = {INDUCTOR: default_cache_dir()}
    use_compile_cache(tmp_path, CPU, environment)
    assert environment[INDUCTOR] == str(tmp_path / version_key(CPU))


def test_a_folder_that_cannot_be_made_is_refused_if_asked_for_and_done_without_if_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(ConfigError, match=f"--compile_cache {file}"):
        use_compile_cache(file, CPU, {})
    environment = {"XDG_CACHE_HOME": str(file)}
    assert "where torch keeps it" in use_compile_cache(None, CPU, environment)
    assert INDUCTOR not in environment


def test_a_folder_that_may_only_be_read_is_no_place_for_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked of the system and not tried: for root, nothing but the answer can be another one.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=f"--compile_cache {tmp_path}"):
        use_compile_cache(tmp_path, CPU, {})
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    assert "where torch keeps it" in use_compile_cache(None, CPU, environment)
    assert INDUCTOR not in environment


COMPILE = """
import json, sys
from pathlib import Path
import torch
from meloformer.batches.collate import collate_rows
from meloformer.model.attention import build_plan, summarize
from meloformer.model.masks import RULES
from meloformer.training.compile_cache import found_in_cache, use_compile_cache

use_compile_cache(Path(sys.argv[1]), torch.device("cpu"))
batch = collate_rows([[]], 128, RULES["full"])
plan = build_plan(batch.layout, RULES["full"], "flex", batch.blocks)
keys = torch.ones(1, 2, 256, 32)
with torch.no_grad():
    summarize(keys[:, :, :128], keys, keys, plan)
counters = torch._dynamo.utils.counters["inductor"]
print(json.dumps([found_in_cache(), counters["fxgraph_cache_hit"], counters["fxgraph_cache_miss"]]))
"""


@pytest.mark.slow
def test_a_second_process_takes_compiled_attention_from_the_cache(tmp_path: Path) -> None:
    def compile_once() -> list:
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, str(tmp_path)],
            cwd=ROOT,
            env={name: value for name, value in ENVIRONMENT.items() if name != INDUCTOR},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    assert compile_once() == ["cold", 0, 1]
    assert compile_once() == ["warm", 1, 0]
