import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from meloformer.demo.composer import Composer
from meloformer.demo.server import PageServer, static_files
from meloformer.demo.settings import PageConfig, PageLimits
from meloformer.errors import ConfigError
from tests.demo.pages import Visitor

ROOT = Path(__file__).parents[2]


def test_without_a_wish_only_this_machine_reaches_the_page() -> None:
    assert PageConfig().is_local
    assert not PageConfig(host="0.0.0.0").is_local and not PageConfig(host="::").is_local


@pytest.mark.parametrize(
    ("name", "value"), [("max_bars", 0), ("queue", -1), ("max_seconds", 0), ("connections", 0)]
)
def test_limits_that_allow_nothing_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"--{name} {value}: allowed"):
        PageLimits(**{name: value})


def test_an_impossible_port_is_refused() -> None:
    with pytest.raises(ConfigError, match="--port 70000: allowed"):
        PageConfig(port=70_000)


def test_a_port_that_is_taken_is_refused_with_a_remedy(page: Visitor) -> None:
    with pytest.raises(ConfigError, match="such as --port 0"):
        PageServer(page.studio, "127.0.0.1", page.port)


def test_every_file_of_the_page_is_served_and_travels_in_the_wheel() -> None:
    folder = ROOT / "meloformer" / "demo" / "static"
    names = {path.name for path in folder.iterdir()}
    assert {f"/{name}" for name in names} | {"/"} == set(static_files())
    assert all(path.is_file() for path in folder.iterdir())
    assert '"meloformer.demo" = ["static/*"]' in (ROOT / "pyproject.toml").read_text()


def test_warming_up_leaves_the_model_as_it_was(composer: Composer) -> None:
    before = {name: value.clone() for name, value in composer.model.state_dict().items()}
    composer.warm_up()
    assert all(before[name].equal(value) for name, value in composer.model.state_dict().items())


@pytest.mark.slow
def test_the_recipe_serves_warns_of_others_and_ends_at_ctrl_c(run_folder: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "launch/demo.py", "--checkpoint", run_folder),
            *("--port", "0", "--host", "0.0.0.0", "--device", "cpu"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        assert "warning: --host 0.0.0.0" in process.stdout.readline()
        url = re.search(r"http://\S+", process.stdout.readline())
        assert url is not None
        with urllib.request.urlopen(url[0], timeout=60) as answer:
            assert b"MeloFormer" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "stopped by Ctrl-C; nothing was kept\n"
