"""One version, wherever it stands."""

from pathlib import Path

import pytest

from meloformer.errors import ConfigError
from meloformer.release.versions import Version, agreed_version

ROOT = Path(__file__).parents[2]


def test_version_changelog_and_release_notes_of_this_tree_agree() -> None:
    version = agreed_version(ROOT)
    assert version.number == (ROOT / "VERSION").read_text().strip()
    # The newest stands first, and every heading has a number: nothing is in no version.
    for name in ("CHANGELOG.md", "RELEASE_NOTES.md"):
        first, *_ = (
            line for line in (ROOT / name).read_text().splitlines() if line.startswith("## ")
        )
        assert version.number in first, (name, first)


def test_the_newest_heading_counts_and_the_day_is_part_of_it(root: Path) -> None:
    assert agreed_version(root) == Version("1.2.3", "2027-01-31")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("VERSION", "1.2.4\n", "VERSION 1.2.4"),
        ("CHANGELOG.md", "## 1.2.4 (2027-01-31)\n", "CHANGELOG.md 1.2.4"),
        ("RELEASE_NOTES.md", "## MeloFormer 1.2.2 (2027-01-31)\n", "RELEASE_NOTES.md 1.2.2"),
        ("RELEASE_NOTES.md", "## 1.2.3 (unreleased)\n", r"RELEASE_NOTES.md 1.2.3 \(unreleased\)"),
        ("CHANGELOG.md", "## Unreleased\n", "found no heading with a version; allowed"),
    ],
)
def test_a_file_that_says_otherwise_is_refused_in_one_line(root, name, text, said) -> None:
    (root / name).write_text(text)
    with pytest.raises(ConfigError, match=said) as refusal:
        agreed_version(root)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_missing_is_named(root: Path) -> None:
    (root / "VERSION").unlink()
    with pytest.raises(ConfigError, match="VERSION: cannot be read"):
        agreed_version(root)
