"""What is written by hand is what the libraries would write."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meloformer.shards.tars import ids_to_npy, tar_member


@given(
    st.text("0123456789abcdef", min_size=1, max_size=95),
    st.binary(max_size=2000) | st.integers(0, 1 << 20).map(bytes),
)
def test_a_member_is_what_tarfile_writes(name: str, data: bytes) -> None:
    member = tarfile.TarInfo(f"{name}.npy")
    member.size, member.mode = len(data), 0o644
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(data))
        expected = file.getvalue()[: tar.offset]
    assert tar_member(f"{name}.npy", data) == expected


def test_a_name_that_needs_a_second_header_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="header"):
        tar_member("a" * 101, b"")


@pytest.mark.parametrize("length", [0, 1, 9, 10, 99_999, 1_000_000])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i8"])
def test_ids_are_stored_as_numpy_writes_them(length: int, dtype: str) -> None:
    ids = (np.arange(length) % 700).astype(dtype)
    file = io.BytesIO()
    np.save(file, ids.astype("<u2"))
    assert ids_to_npy(ids) == file.getvalue()
