"""What decides the captions of a shard folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meloformer.captions.patterns import check_languages
from meloformer.errors import ConfigError
from meloformer.file_sums import sha256_of


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """What decides the captions of a shard folder."""

    max_bars: int = 160
    """Most bars of a window."""
    max_seq_len: int = 8192
    """Most tokens of a window: the length of the model's rows."""
    overlap: int = 16
    """Bars that two windows of a piece share."""
    num_captions: int = 6
    """Captions of each window in each language, from vague to exact."""
    languages: tuple[str, ...] = ("en", "zh")
    """en, zh or both."""
    seed: int = 0
    """Draws what is said, and the templates that are held out."""
    held_out_templates: float = 0.25
    """Share of the sentence templates that train never sees; valid and test see only those."""
    labels: tuple[str, ...] = ()
    """Where genre, mood and scene come from: `folder` (names of folders), `name` (names of files),
    .jsonl, .csv or .tsv files with `location` or `file` and `genre`, `mood`, `style`, `tags`."""
    user_captions: Path | None = None
    """JSON lines with `location` and `caption`, which join the others."""

    def __post_init__(self) -> None:
        check_languages(self.languages)
        for name, least in (("max_bars", 1), ("max_seq_len", 16), ("overlap", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed {least} or more")
        if self.num_captions < 0 or (self.num_captions == 0 and self.user_captions is None):
            raise ConfigError(
                f"--num_captions {self.num_captions}: allowed 1 or more, 0 with --user_captions"
            )
        if not 0.0 <= self.held_out_templates < 1.0:
            raise ConfigError(
                f"--held_out_templates {self.held_out_templates}: allowed 0 up to, not with, 1"
            )

    def to_json(self) -> dict[str, Any]:
        """As they stand in captions.json: no path, but what files hold."""
        found = asdict(self)
        found["languages"] = list(self.languages)
        found["labels"] = [_named_by_content(source) for source in self.labels]
        if self.user_captions is not None:
            found["user_captions"] = _named_by_content(str(self.user_captions))
        return found


def _named_by_content(source: str) -> str:
    path = Path(source)
    if not path.is_file():
        return source
    return f"{path.name} {sha256_of(path)}"
