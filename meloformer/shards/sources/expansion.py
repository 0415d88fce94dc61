"""How far an archive may swell: what a bomb would need, music never does."""

from meloformer.errors import ShardError
from meloformer.midi.limits import MAX_FILE_BYTES

_ALLOWED_EXPANSION = 100
# Below these a bomb does no harm, and tiny files of one pattern do shrink a hundredfold.
_MEMBER_FLOOR_BYTES = 2**20
_ARCHIVE_FLOOR_BYTES = MAX_FILE_BYTES

REASON = "expansion"


def swells(unpacked_bytes: int, packed_bytes: int) -> bool:
    """Tell a member that unpacks to more than music would."""
    return unpacked_bytes > max(_MEMBER_FLOOR_BYTES, _ALLOWED_EXPANSION * packed_bytes)


def detail(unpacked_bytes: int, packed_bytes: int) -> str:
    """What was found and what is allowed, for the rejection of a member."""
    return (
        f"{packed_bytes} bytes unpack to {unpacked_bytes} or more; allowed {_ALLOWED_EXPANSION}fold"
    )


def allowed_bytes(packed_bytes: int) -> int:
    """Bytes that a whole archive may unpack to."""
    return max(_ARCHIVE_FLOOR_BYTES, _ALLOWED_EXPANSION * packed_bytes)


def check_archive(path: str, unpacked_bytes: int, packed_bytes: int) -> None:
    """Refuse an archive that swells as a whole.

    Raises:
        ShardError: it does.
    """
    if unpacked_bytes > allowed_bytes(packed_bytes):
        raise ShardError(
            f"{path}: {packed_bytes} bytes unpack to {unpacked_bytes} or more; allowed "
            f"{_ALLOWED_EXPANSION}fold: it looks like a decompression bomb; leave it out, or "
            "unpack it yourself"
        )
