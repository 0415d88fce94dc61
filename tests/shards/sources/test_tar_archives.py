import gzip
import io
import random
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import MidiError, ShardError
from meloformer.midi.limits import MAX_FILE_BYTES
from meloformer.shards.sources import carried_bytes, open_source
from tests.shards.sources.outcomes import outcomes

ENDINGS = ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"]
MODES = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def make_tar(
    path: Path, members: dict[str, bytes], specials: tuple[tarfile.TarInfo, ...] = ()
) -> Path:
    ending = path.name.partition(".")[2]
    with tarfile.open(path, MODES[ending]) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in specials:
            tar.addfile(member)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_members_are_what_was_packed(tmp_path: Path, chorales: list[bytes], ending: str) -> None:
    members = {f"{'deep/' * 30}{number}.mid": data for number, data in enumerate(chorales)}
    members |= {"empty.mid": b"", "圣咏 é.mid": b"x"}
    assert outcomes(make_tar(tmp_path / f"a.{ending}", members)) == members


def test_a_tar_is_read_as_what_it_is_whatever_its_name_says(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    packed = make_tar(tmp_path / "a.tar.xz", {"a.mid": chorales[0]})
    assert outcomes(packed.rename(tmp_path / "b.tar")) == {"a.mid": chorales[0]}


def test_gzip_in_several_parts_is_read_to_the_end(tmp_path: Path, chorales: list[bytes]) -> None:
    plain = make_tar(tmp_path / "a.tar", {"a.mid": chorales[0], "b.mid": chorales[1]}).read_bytes()
    parts = (gzip.compress(plain[:1000]), gzip.compress(plain[1000:]))
    (tmp_path / "b.tar.gz").write_bytes(b"".join(parts))
    assert outcomes(tmp_path / "b.tar.gz") == {"a.mid": chorales[0], "b.mid": chorales[1]}


def test_bytes_travel_with_a_member_only_where_the_tar_is_compressed(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    for ending, expected in (("tar", 0), ("tar.gz", len(chorales[0]))):
        path = make_tar(tmp_path / f"a.{ending}", {"a.mid": chorales[0]})
        assert [carried_bytes(file) for file in open_source(str(path)).files()] == [expected]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_names_that_lead_out_links_and_devices_are_counted_with_their_reason(
    tmp_path: Path, chorales: list[bytes], ending: str
) -> None:
    names = ["../../escaped.mid", "/absolute.mid", "a/../b.mid", "./good.mid", "c/d.zip", "e.txt"]
    specials = (
        special("link.mid", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.mid", tarfile.LNKTYPE, "./good.mid"),
        special("device.mid", tarfile.CHRTYPE),
        special("pipe.mid", tarfile.FIFOTYPE),
        special("folder.mid", tarfile.DIRTYPE),
    )
    path = make_tar(tmp_path / f"evil.{ending}", dict.fromkeys(names, chorales[0]), specials)
    assert outcomes(path) == {
        "../../escaped.mid": "unsafe_path",
        "/absolute.mid": "unsafe_path",
        "a/../b.mid": "unsafe_path",
        "good.mid": chorales[0],
        "c/d.zip": "unopened_archive",
        "link.mid": "link",
        "hard.mid": "link",
        "device.mid": "not_a_file",
        "pipe.mid": "not_a_file",
    }
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["tar.gz", "tar.bz2", "tar.xz"])
def test_a_member_that_swells_a_hundredfold_is_refused_alone(
    tmp_path: Path, chorales: list[bytes], ending: str
) -> None:
    members = {"a.mid": chorales[0], "bomb.mid": bytes(2**24), "b.mid": chorales[1]}
    found = outcomes(make_tar(tmp_path / f"a.{ending}", members))
    assert found == members | {"bomb.mid": "expansion"}


@pytest.mark.parametrize("name", ["bomb.mid", "bomb.wav"])
def test_a_tar_that_swells_a_hundredfold_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        member = tarfile.TarInfo(name)
        member.size = 2 * MAX_FILE_BYTES
        tar.addfile(member, _Zeros())  # type: ignore[arg-type]
    with pytest.raises(ShardError, match=r"a\.tar\.gz: \d+ bytes unpack to .* decompression bomb"):
        list(open_source(str(path)).files())


class _Zeros:
    def read(self, size: int) -> bytes:
        return bytes(size)


def test_a_file_with_holes_gives_no_bytes_that_were_never_packed(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    header = bytearray(special("holes.mid", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" + b"00000000000\0"  # one piece of no bytes
    header[483:495] = b"00077777777\0"  # the size that it pretends to
    header[148:156] = b"        "
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    packed = make_tar(tmp_path / "a.tar", {"good.mid": chorales[0]}).read_bytes()
    (tmp_path / "a.tar").write_bytes(bytes(header) + packed)
    assert outcomes(tmp_path / "a.tar") == {"holes.mid": "expansion", "good.mid": chorales[0]}


def test_a_member_beyond_the_limit_is_not_read(tmp_path: Path, chorales: list[bytes]) -> None:
    too_long = tarfile.TarInfo("long.mid")
    too_long.size = MAX_FILE_BYTES + 1
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(too_long, _Zeros())  # type: ignore[arg-type]
    assert outcomes(tmp_path / "a.tar") == {"long.mid": "file_too_big"}


def test_a_name_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    name = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    name.size = 2**32
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(name.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**32 + 10 * 512)
    with pytest.raises(ShardError, match="a header of type b'L' and 4294967296 bytes"):
        list(open_source(str(tmp_path / "a.tar")).files())


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_second_tar_behind_the_first_is_not_dropped_silently(
    tmp_path: Path, chorales: list[bytes], ending: str
) -> None:
    first = make_tar(tmp_path / f"a.{ending}", {"a.mid": chorales[0]})
    second = make_tar(tmp_path / f"b.{ending}", {"b.mid": chorales[1]})
    (tmp_path / f"c.{ending}").write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ShardError, match="goes on behind its end marker; unpack it with tar -i"):
        list(open_source(str(tmp_path / f"c.{ending}")).files())


def test_members_are_not_held(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {f"{number}.mid": b"" for number in range(1000)})
    peak = 0
    with pytest.MonkeyPatch.context() as patch:
        kept: list[tarfile.TarFile] = []
        opened = tarfile.TarFile.taropen
        patch.setattr(
            tarfile.TarFile,
            "taropen",
            classmethod(lambda cls, *a, **k: kept.append(opened(*a, **k)) or kept[-1]),
        )
        for _ in open_source(str(path)).files():
            peak = max(peak, len(vars(kept[0])["members"]))
    assert 1 <= peak <= 2


def test_licences_in_a_tar_are_known_when_it_was_read(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    members = {"x/LICENSE": b"MIT License", "a.mid": chorales[0]}
    source = open_source(str(make_tar(tmp_path / "a.tar.gz", members)))
    assert source.survey().licences == ()
    assert len(list(source.files())) == 1
    assert source.licences() == ("x/LICENSE: MIT",)


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.xz"])
@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4))
def test_a_spoiled_tar_ends_in_files_reasons_or_one_line(
    ending: str, changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "spoiled-tars"
    folder.mkdir(exist_ok=True)
    noise = random.Random(1).randbytes(700)
    names = ["a.mid", "x" * 150 + ".mid", "b.mid"]
    path = make_tar(folder / f"a.{ending}", dict.fromkeys(names, noise))
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % min(len(data), 5000)] = value
    path = folder / f"{zlib.crc32(data)}.{ending}"
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
