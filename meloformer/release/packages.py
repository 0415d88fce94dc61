"""Wheel, sdist and source archive of a commit, each installed where nothing else is and tried."""

import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meloformer.errors import ConfigError, ReleaseError
from meloformer.release.programs import run_program
from meloformer.release.source import Commit, unpack, write_source_archive

CONSTRAINTS_NAME = "constraints.txt"
_INSTALL = "pip install -c constraints.txt -e '.[release]'"
# What would let one installation see another, or the checkout.
ALONE = {"PYTHONPATH": "", "PYTHONHOME": "", "VIRTUAL_ENV": "", "PYTHONNOUSERSITE": "1"}


def check_build_installed() -> None:
    """Refuse before anything is made where the builder is missing.

    Raises:
        ConfigError: it is.
    """
    if importlib.util.find_spec("build") is None:
        raise ConfigError(
            f"the package build is not installed; it is the extra `release`: {_INSTALL}"
        )


def build_packages(commit: Commit, output: Path, aside: Path) -> list[Path]:
    """Wheel, sdist and MeloFormer-<version>.tar.gz of a commit; the same commit, the same bytes.

    Args:
        commit: what they are made of.
        output: folder that they are written into.
        aside: an empty folder to work in.

    Returns:
        The three files.
    """
    number = commit.version.number
    archive = output / f"MeloFormer-{number}.tar.gz"
    write_source_archive(commit, archive, top=archive.name.removesuffix(".tar.gz"))
    tree = unpack(archive, aside)
    # The builder of this environment: pinned, and nothing is fetched.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", output]
    run_program(
        [*build, "--sdist", "--wheel", tree], aside, {"SOURCE_DATE_EPOCH": str(commit.seconds)}
    )
    packages = [
        output / f"meloformer-{number}-py3-none-any.whl",
        output / f"meloformer-{number}.tar.gz",
        archive,
    ]
    for path in packages:
        if not path.is_file():
            raise ReleaseError(f"{path}: not there after the build; is VERSION {number} its own?")
    if archive.samefile(packages[1]):
        raise ReleaseError(
            f"{output}: takes {archive.name} and {packages[1].name} for one file; allowed: a disk "
            "that tells capital letters from small ones"
        )
    return packages


@dataclass(frozen=True)
class Environment:
    """A virtual environment with nothing but what a release brings.

    Args:
        folder: of it.
    """

    folder: Path

    @property
    def programs(self) -> Path:
        """Folder of its programs."""
        return Path(sysconfig.get_path("scripts", "venv", {"base": str(self.folder)}))

    def python(self, *words: object, cwd: Path | None = None, **variables: str) -> str:
        """What its interpreter prints; see `run_program`."""
        program = [self.programs / "python", *words]
        return run_program(program, cwd or self.folder, {**ALONE, **variables})

    def pip(self, *words: object) -> str:
        """Let its pip do something, under the variables of the user: PIP_INDEX_URL among them."""
        return self.python("-m", "pip", "--disable-pip-version-check", *words)

    @classmethod
    def make(cls, folder: Path) -> "Environment":
        """A new one; pip is all that it holds."""
        run_program([sys.executable, "-m", "venv", folder], folder.parent, ALONE)
        return cls(folder.resolve())


def try_packages(
    packages: Sequence[Path], constraints: Path, environment: Environment, aside: Path
) -> Iterator[str]:
    """Install each package in turn, alone, and let it walk the road outside of any source tree.

    The first brings the dependencies, by its own metadata; those after it take its place, and pip
    says whether what they ask for is there.

    Args:
        packages: files that pip installs.
        constraints: versions of the dependencies.
        environment: a new one.
        aside: folder to work in.

    Yields:
        What was found of each.

    Raises:
        ReleaseError: one does not install, or does not work.
    """
    for number, package in enumerate(packages):
        if number:
            environment.pip("uninstall", "--yes", "meloformer")
            gone = (
                "import importlib.util as u, sys; sys.exit(u.find_spec('meloformer') is not None)"
            )
            environment.python("-c", gone)
        # A folder of wheels or an index brings the rest once.
        alone = ["--no-deps"] if number else []
        environment.pip("install", "--no-compile", "-c", constraints, *alone, package)
        environment.pip("check")
        folder = aside / f"tried-{number}"
        folder.mkdir()
        said = run_program(
            [environment.programs / "meloformer", "tools", "check_install", "--output", "checked"],
            folder,
            ALONE,
        )
        where = str(environment.folder / "lib")
        if where not in said.splitlines()[0]:
            raise ReleaseError(f"{package.name}: {said.splitlines()[0]}; expected from {where}")
        yield f"{package.name}: installed alone, {len(said.splitlines()) - 1} checks passed"
