import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from meloformer.model.tensor_file import FileSum, write_tensors

TENSORS = {
    "weight": torch.arange(12.0).view(3, 4),
    "half": torch.linspace(-1, 1, 7).to(torch.bfloat16),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "nothing": torch.zeros(0, 5),
    "flags": torch.tensor([True, False, True]),
    "large": torch.randn(1 << 21, generator=torch.Generator().manual_seed(0)),
}


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {"tokenizer": "ours"})
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"tokenizer": "ours"}


def test_the_sum_is_that_of_the_bytes_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    found = write_tensors(path, TENSORS, {})
    data = path.read_bytes()
    assert found == FileSum(len(data), hashlib.sha256(data).hexdigest())


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_tensors(tmp_path / "absent" / "file", TENSORS, {})
