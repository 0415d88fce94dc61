"""Commands as documents show them, with the line that they stand on."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "launch").rglob("*.py")
    if path.name != "__init__.py"
)
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README*.md", "RELEASE_NOTES.md", "docs/**/*.md", "launch/**/README.md")
    for path in ROOT.glob(pattern)
)

# What stands for something of the user's, and what tests take for it.
PLACEHOLDERS = {
    "<name>": "name",
    "<other>": "other",
    "<new>": "new",
    "<base>": "base",
    "<bridge>": "bridge",
    "<soft_prompt>": "soft_prompt",
    "<adapter>": "adapter",
    "<folder>": "folder",
    "<input>": "my_midi",
    "<folder, .zip, .tar(.gz) or list file>": "my_midi",
    "<bank>": "bank",
    "<bucket>": "bucket",
    "<host:port>": "localhost:6379",
    "<address>": "https://mirror.example",
    "<version>": "2.11.0",
    "<user>": "user",
    "<server>": "server",
    "<n>": "2",
    "<machine>": "machine",
}
# Three dots stand for flags that were shown before; the first that fits says which.
DOTS = (
    (r"generate.py \.\.\. --bridge", "--checkpoint runs/base --text 'calm piano'"),
    (r"generate.py \.\.\. --(text|prompts)", "--checkpoint runs/base --bridge runs/bridge"),
    (r"generate.py \.\.\.", "--checkpoint runs/base"),
    (
        r"evaluate.py --control \.\.\.",
        "--checkpoint runs/base --bridge runs/bridge --data data_shards/name "
        "--captions captions.jsonl",
    ),
    ("", ""),
)

# First words of a command, besides launch/ itself.
_PROGRAMS = (
    "python|python3|torchrun|deepspeed|accelerate|meloformer|make|sbatch|kubectl|pip|git|hf|tar|"
    "sha256sum|apt-get|systemctl|ssh|tensorboard|pytest|nohup|source|cd"
)
_COMMAND = re.compile(
    rf"(?:[A-Z_]+=\S+ +)*(?:(?:\S*/bin/)?(?:{_PROGRAMS})|launch/\S+\.(?:py|sh|sbatch)) +[^\s=]"
)


@dataclass(frozen=True)
class Command:
    """A command, and where it is shown.

    Args:
        document: its path in the repository.
        line: counted from 1.
        text: as it stands there, on one line and without its comment.
    """

    document: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"

    @property
    def filled(self) -> str:
        """With names in the place of what stands for them.

        Raises:
            KeyError: PLACEHOLDERS has no name for one.
        """
        text = re.sub(r"<[^<>]+>", lambda found: PLACEHOLDERS[found[0]], self.text)
        flags = next(flags for pattern, flags in DOTS if re.search(pattern, text))
        return re.sub(r"(?<=\s)\.\.\.(?=\s|$)", flags, text)

    @property
    def parts(self) -> list["Part"]:
        """The programs that it starts, one after the other."""
        words = shlex.shlex(self.filled, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        parts: list[list[str]] = [[]]
        for word in words:
            if word == "&&":
                parts.append([])
            else:
                parts[-1].append(word)
        return [Part.of(part) for part in parts]


@dataclass(frozen=True)
class Part:
    """One program of a command.

    Args:
        variables: of the environment, that stand before it.
        words: the program and its arguments, what leads its output elsewhere left out.
    """

    variables: dict[str, str]
    words: list[str]

    @classmethod
    def of(cls, words: list[str]) -> "Part":
        """Sort words."""
        words = words[1:] if words[0] == "nohup" else words
        first = next(i for i, word in enumerate(words) if not re.match(r"[A-Za-z_]+=", word))
        end = next((i for i, word in enumerate(words) if word[0] in "<>&"), len(words))
        variables = dict(word.split("=", 1) for word in words[:first])
        return cls(variables, words[first:end])

    @property
    def program(self) -> str:
        """Its name without its folder."""
        return self.words[0] if self.words[0].startswith("launch/") else Path(self.words[0]).name


def commands_of(document: str) -> list[Command]:
    """Everything in a document that can be typed: lines of code, and between backticks."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = []
    for line, code, is_shell in code_with_lines(text):
        shown = _without_comment(code)
        if _COMMAND.match(shown) or (is_shell and shown):
            found.append(Command(document, line, shown))
    return found


def commands_in(text: str) -> list[Command]:
    """The same of what a program prints."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [
        Command("", line, shown)
        for line, shown in enumerate(map(str.strip, joined.splitlines()), 1)
        if _COMMAND.match(shown)
    ]


def code_with_lines(text: str, *, is_all_code: bool = False) -> Iterator[tuple[int, str, bool]]:
    """Number and text of each line of code, and whether it stands in a block of shell.

    Lines are those of fenced and of indented blocks, and what stands between backticks. A line that
    goes on in the next one is one, with the number of its first. A docstring is all code.
    """
    fence: str | None = None
    began, kept = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"```(\w*)", line)
        if mark:
            fence = None if fence is not None else mark[1]
            continue
        is_block = (
            is_all_code or fence in ("", "sh") or (fence is None and re.match(r" {4}|\t", line))
        )
        if not is_block:
            if fence is None:
                for span in re.findall(r"`([^`]+)`", line):
                    yield number, span, False
            continue
        began = began or number
        kept += line.strip().removesuffix("\\")
        if not line.endswith("\\"):
            yield began, kept, fence == "sh"
            began, kept = 0, ""


def code_of(text: str) -> str:
    """The same as one text."""
    return "\n".join(code for _, code, _ in code_with_lines(text))


def _without_comment(line: str) -> str:
    """A comment begins with a word of its own."""
    return re.sub(r"(^|\s+)#\s.*", "", line).strip()
