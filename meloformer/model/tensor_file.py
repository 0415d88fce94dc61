"""Writing safetensors in one pass: bytes go to the disk and into a sum at the same time.

A file of many gigabytes is read once, from memory, and never a second time from the disk. The
interpreter is free meanwhile, so that a thread can write beside training.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK_BYTES = 1 << 22
_ALIGNMENT_BYTES = 8


@dataclass(frozen=True)
class FileSum:
    """What a manifest says of a file.

    Args:
        bytes: its size.
        sha256: of its content, in hexadecimal.
    """

    bytes: int
    sha256: str

    def to_json(self) -> dict[str, int | str]:
        """Plain data."""
        return asdict(self)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> FileSum:
    """Write a safetensors file to the disk, synced.

    Args:
        path: where.
        tensors: on the CPU, contiguous, by name.
        metadata: strings for the header.

    Raises:
        OSError: the disk is full, or the folder cannot be written.

    Source: the format's description, github.com/huggingface/safetensors.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    # Wide elements first, as the library orders them: each then starts at a multiple of its size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % _ALIGNMENT_BYTES)
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for content in [
            memoryview(len(head).to_bytes(8, "little") + head),
            *(_bytes_of(tensors[name]) for name in names),
        ]:
            for begin in range(0, len(content), _CHUNK_BYTES):
                chunk = content[begin : begin + _CHUNK_BYTES]
                _write_whole(file.fileno(), chunk)
                digest.update(chunk)
            size += len(content)
        os.fsync(file.fileno())
    return FileSum(size, digest.hexdigest())


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    # numpy has no bfloat16, and a tensor without elements no view as bytes.
    if not tensor.numel():
        return memoryview(b"")
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _write_whole(handle: int, chunk: memoryview) -> None:
    # A disk that is about to be full takes a part of a chunk and refuses the rest.
    while chunk:
        chunk = chunk[os.write(handle, chunk) :]
