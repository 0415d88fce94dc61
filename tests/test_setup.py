"""`make setup` takes packages from where the user's variables say, and from nowhere else."""

import os
import shutil
import subprocess
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
# Makes a wheel of nothing that wants the package which only the index has.
BACKEND = """
import zipfile
FOLDER, NAME = "meloformer-1.dist-info", "meloformer-1-py3-none-any.whl"
WANTED = "".join(f"Provides-Extra: {e}\\nRequires-Dist: wanted-package; extra == '{e}'\\n"
                 for e in ("shards", "remote", "train"))
def build_editable(folder, settings=None, metadata=None):
    with zipfile.ZipFile(f"{folder}/{NAME}", "w") as wheel:
        head = "Metadata-Version: 2.1\\nName: meloformer\\nVersion: 1\\n"
        wheel.writestr(f"{FOLDER}/METADATA", head + WANTED)
        lines = ("Wheel-Version: 1.0", "Tag: py3-none-any", "Root-Is-Purelib: true", "")
        wheel.writestr(f"{FOLDER}/WHEEL", "\\n".join(lines))
        wheel.writestr(f"{FOLDER}/RECORD", "")
    return NAME
"""


def write_wheel(folder: Path) -> None:
    """A package of an index: wanted-package 1.0, with one module."""
    folder.mkdir(parents=True)
    info = "wanted_package-1.0.dist-info"
    with zipfile.ZipFile(folder / "wanted_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("wanted_package.py", "came_from = 'our wheel'\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: wanted-package\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Our Makefile over a project that wants one package."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "constraints.txt").write_text("wanted-package==1.0\n")
    return folder


def setup_made_in(project: Path, **variables: str) -> str:
    """What the package says that the environment of `make setup` holds."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "MAKE"))}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", **variables}
    done = subprocess.run(
        ["make", "setup"], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    say = "import wanted_package; print(wanted_package.came_from)"
    command = [project / ".venv" / "bin" / "python", "-c", say]
    return subprocess.check_output(command, text=True).strip()


@pytest.mark.slow
def test_setup_asks_the_index_that_pip_index_url_names(project: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "mirror" / "simple" / "wanted-package")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "mirror"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}/simple"
        assert setup_made_in(project, PIP_INDEX_URL=address) == "our wheel"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_setup_without_any_index_takes_a_folder_of_wheels(project: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels")
    found = setup_made_in(project, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "wheels"))
    assert found == "our wheel"
