import io
import random
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import MidiError, ShardError
from meloformer.midi.limits import MAX_FILE_BYTES
from meloformer.shards.sources import open_source
from tests.shards.sources.outcomes import outcomes

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def library_says(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


@pytest.mark.parametrize("method", METHODS)
def test_members_are_what_the_library_reads(
    tmp_path: Path, chorales: list[bytes], method: int
) -> None:
    members = {f"deep/{number}.mid": data for number, data in enumerate(chorales)}
    path = make_zip(tmp_path / "a.zip", members | {"empty.mid": b"", "圣咏 é.mid": b"x"}, method)
    assert outcomes(path) == library_says(path)


def test_an_archive_written_to_a_pipe_has_its_sizes_behind_the_data(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += data
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        archive.writestr("a.mid", chorales[0])
        archive.writestr("b.mid", chorales[1])
    (tmp_path / "a.zip").write_bytes(pipe.data)
    assert outcomes(tmp_path / "a.zip") == {"a.mid": chorales[0], "b.mid": chorales[1]}


def test_a_comment_and_a_program_before_the_archive_do_no_harm(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.mid": chorales[0]})
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\5\6" + b"ripped by hand" * 100
    path.write_bytes(b"#!/bin/sh unpacks itself\n" * 50 + path.read_bytes())
    assert outcomes(path) == {"a.mid": chorales[0]}


@pytest.mark.slow
def test_more_members_than_16_bits_count_are_all_there(tmp_path: Path) -> None:
    num_members = 2**16 + 3
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(num_members):
            archive.writestr(f"{number}.mid", b"")
    names = [file.name for file in open_source(str(tmp_path / "a.zip")).files()]
    assert names == [f"{number}.mid" for number in range(num_members)]


def test_a_member_behind_four_gigabytes_is_found(tmp_path: Path, chorales: list[bytes]) -> None:
    # A hole in the file stands for the gigabytes; the offsets are of 64 bits all the same.
    path = tmp_path / "a.zip"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
        file.seek(5 * 2**30)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.mid", chorales[0])
    assert outcomes(path) == library_says(path) == {"a.mid": chorales[0]}


def test_names_that_lead_out_are_refused_one_by_one(tmp_path: Path, chorales: list[bytes]) -> None:
    unsafe = ["../../escaped.mid", "/absolute.mid", "a/../../b.mid", "c:\\d.mid", "..\\e.mid"]
    members = dict.fromkeys([*unsafe, "./good.mid", "a/b..c.mid"], chorales[0])
    found = outcomes(make_zip(tmp_path / "evil.zip", members))
    assert found == dict.fromkeys(unsafe, "unsafe_path") | {
        "good.mid": chorales[0],
        "a/b..c.mid": chorales[0],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


def test_links_archives_and_locked_members_are_counted_with_their_reason(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link.mid")
        link.create_system = 3
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("locked.mid", chorales[0])
        archive.writestr("more/inner.zip", b"PK")
        archive.writestr("good.mid", chorales[0])
        archive.writestr("readme.txt", b"no music")
    data = bytearray(path.read_bytes())
    for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        header = data.index(magic, data.rindex(b"locked.mid") - 50 if magic == b"PK\1\2" else 0)
        while b"locked.mid" not in data[header : header + 60]:
            header = data.index(magic, header + 1)
        data[header + flags] |= 1
    path.write_bytes(data)
    assert outcomes(path) == {
        "link.mid": "link",
        "locked.mid": "encrypted",
        "more/inner.zip": "unopened_archive",
        "good.mid": chorales[0],
    }


def test_a_member_that_swells_a_hundredfold_is_refused_and_never_unpacked(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    members = {"bomb.mid": bytes(8 * 2**20), "good.mid": chorales[0], "small.mid": bytes(2**16)}
    found = outcomes(make_zip(tmp_path / "a.zip", members))
    assert found == {"bomb.mid": "expansion", "good.mid": chorales[0], "small.mid": bytes(2**16)}


def test_many_small_members_that_swell_together_refuse_the_archive(tmp_path: Path) -> None:
    members = {f"{number}.mid": bytes(2**20) for number in range(100)}
    path = make_zip(tmp_path / "a.zip", members)
    with pytest.raises(ShardError, match=r"a\.zip: \d+ bytes unpack to .* decompression bomb"):
        open_source(str(path)).survey()


def test_members_that_share_their_bytes_refuse_the_archive(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.mid": random.Random(1).randbytes(2**16)})
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(50):
            again = zipfile.ZipInfo(f"{number}.mid")
            for name in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
                setattr(again, name, getattr(archive.infolist()[0], name))
            archive.filelist.append(again)
        archive._didModify = True  # the directory is to be written anew
    with pytest.raises(ShardError, match="overlap"):
        open_source(str(path)).survey()


def test_a_member_longer_than_the_directory_promises_costs_that_file_alone(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.mid": bytes(2**20), "b.mid": chorales[0]})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\1\2")
    struct.pack_into("<L", data, entry + 24, 1000)  # its unpacked size
    path.write_bytes(data)
    assert outcomes(path) == {"a.mid": "unreadable", "b.mid": chorales[0]}


def test_a_member_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(2**20)
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w") as archive,
        archive.open("a.mid", "w") as member,
    ):
        for _ in range(MAX_FILE_BYTES // 2**20 + 1):
            member.write(noise)
    assert outcomes(tmp_path / "a.zip") == {"a.mid": "file_too_big"}


@pytest.mark.slow
def test_a_directory_of_many_members_is_not_held(tmp_path: Path) -> None:
    """Peak memory over 4,000 and 40,000 members, in a process of its own."""

    def peak(num_members: int) -> int:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for number in range(num_members):
                archive.writestr(f"some/folder/with/a/name/{number:08d}.mid", b"")
        code = (
            "import resource, sys; from meloformer.shards.sources import open_source;"
            "n = sum(1 for _ in open_source(sys.argv[1]).files());"
            "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "a.zip")]
        found, kilobytes = subprocess.run(command, capture_output=True, check=True).stdout.split()
        assert int(found) == num_members
        return int(kilobytes)

    assert peak(40_000) - peak(4_000) < 4_000


def test_licences_in_a_zip_are_known_from_the_survey(tmp_path: Path, chorales: list[bytes]) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.mid": chorales[0], "x/LICENSE": b"MIT License"})
    assert open_source(str(path)).survey().licences == ("x/LICENSE: MIT",)


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4))
def test_a_spoiled_archive_ends_in_files_reasons_or_one_line(
    changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "spoiled-zips"
    folder.mkdir(exist_ok=True)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.mid", bytes(range(40)) * (number + 1))
    data = bytearray(packed.getvalue())
    for position, value in changes:
        data[position % len(data)] = value
    path = folder / f"{zlib.crc32(data)}.zip"
    path.write_bytes(data)
    try:
        for file in open_source(str(path)).files():
            try:
                file.read()
            except MidiError:
                continue
    except ShardError:
        return
    finally:
        path.unlink()
