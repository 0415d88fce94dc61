from pathlib import Path

import pytest

from meloformer.shards.sources import open_source
from meloformer.shards.sources.licences import READ_BYTES, Licences, guess_licence

GPL = "GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007 ... GNU Affero General Public License"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Creative Commons Legal Code\n\nCC0 1.0 Universal", "CC0"),
        ("cc0-1.0", "CC0"),
        ("Attribution 4.0 International\n ... CC0 Public Domain Dedication", "CC-BY 4.0"),
        ("Attribution-ShareAlike 4.0 International", "CC-BY-SA 4.0"),
        ("see https://creativecommons.org/licenses/by-nc-sa/3.0/", "CC-BY-NC-SA 3.0"),
        ("CC BY-NC 4.0", "CC-BY-NC 4.0"),
        ("cc-by-sa-4.0", "CC-BY-SA 4.0"),
        ("MIT License\n\nCopyright (c) 2020", "MIT"),
        ("Permission is hereby granted, free of\ncharge, to any person", "MIT"),
        ("mit", "MIT"),
        ("All rights reserved.\nRedistribution and use in source and binary forms", "BSD"),
        (GPL, "GPL 3"),
        ("gpl-3.0", "GPL 3.0"),
        ("Apache License\nVersion 2.0", "Apache 2.0"),
        ("These tunes are in the public domain.", "public domain"),
        ("All rights reserved.", "all rights reserved"),
        ("Ask me first.", "unknown"),
        ("permit submission with limits", "unknown"),
    ],
)
def test_a_licence_is_what_its_text_names_first(text: str, expected: str) -> None:
    assert guess_licence(text) == expected


def test_the_licences_of_a_folder_are_found_wherever_they_lie(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.mid").write_bytes(chorales[0])
    (tmp_path / "LICENSE").write_text("MIT License")
    (tmp_path / "deep" / "COPYING.txt").write_text(GPL)
    (tmp_path / "deep" / "license.mid").write_bytes(chorales[1])
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\n# Songs\n")
    (tmp_path / "deep" / "README.md").write_text("# The MIT License is nice\n")
    survey = open_source(str(tmp_path)).survey()
    assert survey.licences == (
        "LICENSE: MIT",
        "README.md: CC-BY 4.0",
        "deep/COPYING.txt: GPL 3",
    )
    assert survey.num_files == 2


def test_however_many_licences_there_are_their_kinds_are_kept_and_their_number_is_bounded() -> None:
    licences = Licences()
    for number in range(1000):
        licences.add(f"{number:04d}/LICENSE", b"MIT License")
    licences.add("z/LICENSE", b"cc0")
    lines = licences.lines()
    assert len(lines) < 200
    assert lines[-1] == "and more: CC0, MIT"


def test_a_card_that_is_no_json_or_names_no_licence_is_passed_over() -> None:
    licences = Licences()
    for name, data in (
        ("dataset_info.json", b"{" * READ_BYTES),
        ("a/dataset_info.json", b"[1]"),
        ("b/dataset_info.json", b'{"license": ""}'),
        ("README.md", b"no front matter\nlicense: mit\n"),
    ):
        licences.add(name, data)
    assert licences.lines() == ()
