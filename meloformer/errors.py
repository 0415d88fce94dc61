"""One exception class per stage; launch/ turns each into one line on stderr and exit code 2.

A message says what went wrong, what was found, what is allowed and how to mend it.
"""


class MeloFormerError(Exception):
    """Base of every error that a user or an input file can cause."""


class ConfigError(MeloFormerError):
    """Settings contradict each other or the machine."""


class MidiError(MeloFormerError):
    """One MIDI file cannot be used; caught by shards/ only, counted by `reason`.

    Args:
        reason: a short slug, the key under which rejections are counted (`no_notes`).
        detail: what was found and what is allowed, for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class TokenError(MeloFormerError):
    """A token sequence breaks the grammar, or belongs to another vocabulary."""


class ShardError(MeloFormerError):
    """A shard folder is missing, damaged, or not ours."""


class BatchError(MeloFormerError):
    """A piece or a plan does not fit the rows it is asked to fill."""


class CheckpointError(MeloFormerError):
    """A checkpoint is missing, damaged, or of another run."""


class TrainingError(MeloFormerError):
    """Training cannot go on: raised on all ranks together."""


class GenerationError(MeloFormerError):
    """A wish that generation cannot fulfil."""


class ReleaseError(MeloFormerError):
    """What was to be handed out does not work."""
