"""A bridge's archive tried as its user would: unpacked where nothing else is, and no network."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from meloformer.errors import ReleaseError
from meloformer.midi.read import read_midi
from meloformer.release.bridge_archive import BASE, BRIDGE, DEPLOY_NAME, ENCODER
from meloformer.release.deploy_page import commands_of
from meloformer.release.packages import ALONE
from meloformer.release.programs import run_program
from meloformer.release.source import check_sums, unpack

# Imported by every Python that starts: whoever asks for a connection is refused, and noted.
_GUARD = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open({noted!r}, "a") as file:
            file.write(f"{{event}} {{arguments}}\\n")
        raise OSError("this machine has no network")
sys.addaudithook(refuse)
"""
_PROGRAMS = ".venv/bin/"


def try_offline(
    archive: Path,
    programs: Path,
    aside: Path,
    variables: Mapping[str, str] = ALONE,
    *,
    weights_from: Path | None = None,
) -> Iterator[str]:
    """Unpack an archive, compare its sums, and type the commands of its page that write files.

    Args:
        archive: with weights and text encoder.
        programs: of the environment that has the page's package, in place of the one that the page
            lets its reader make.
        aside: an empty folder to work in, made here.
        variables: of the environment.
        weights_from: archive whose weights are put beside the page, where it brings none.

    Yields:
        What was found.

    Raises:
        ReleaseError: another file, or a command fails, asks for the network or writes none.
    """
    empty = aside / "empty"
    empty.mkdir(parents=True)
    noted = aside / "connections"
    guard = aside / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(_GUARD.format(noted=str(noted)), encoding="utf-8")
    folder = unpack(archive, empty)
    yield f"{archive.name}: {check_sums(folder)} files, all as summed up"
    if weights_from is not None:
        other = unpack(weights_from, aside / "other")
        for name in (BASE, BRIDGE, ENCODER):
            if (other / name).is_dir():
                (other / name).rename(folder / name)

    alone = {**variables, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # Nothing that this machine has fetched before may help.
    alone |= {"HF_HOME": str(aside / "no-cache"), "HOME": str(aside / "no-home")}
    path = [str(guard), variables.get("PYTHONPATH", "")]
    alone["PYTHONPATH"] = ":".join(filter(None, path))
    page = (folder / DEPLOY_NAME).read_text(encoding="utf-8")
    commands = [words for words in commands_of(page) if "--output" in words]
    if not commands:
        raise ReleaseError(f"{archive}: {DEPLOY_NAME} names no command that writes a file")
    for words in commands:
        program = programs / words[0].removeprefix(_PROGRAMS)
        run_program([program, *words[1:]], folder, alone)
        written = folder / words[words.index("--output") + 1]
        if written.suffix == ".mid":
            num_notes = sum(len(track.notes) for track in read_midi(written).tracks)
            yield f"{words[1]}: {num_notes} notes without a network"
    if noted.exists():
        raise ReleaseError(
            f"{archive}: its commands reach for the network: {noted.read_text().splitlines()[0]}; "
            "expected that all is in the archive"
        )
