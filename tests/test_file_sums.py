"""The sum of a file is that of its bytes, however many reads they take."""

import hashlib

import pytest

from meloformer import file_sums
from meloformer.file_sums import sha256_of


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 250])
def test_a_file_has_the_sum_of_all_its_bytes(size, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(file_sums, "_READ_BYTES", 100)
    content = bytes(number % 251 for number in range(size))
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
