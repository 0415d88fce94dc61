"""The page speaks two languages, out of one table, and asks nobody but its own server."""

import json
import re
from html.parser import HTMLParser

from meloformer.demo.border import PageError
from meloformer.demo.server import static_files

FILES = {path: content.decode() for path, (_, content) in static_files().items()}
WORDS = json.loads(FILES["/words.json"])
SCRIPTS = {path: text for path, text in FILES.items() if path.endswith(".js")}
# Names of languages in themselves, the program's name, and signs.
UNTRANSLATED = {"English", "中文", "MeloFormer", "×", "+", "−", "0:00"}


def named_words() -> set[str]:
    """Every word that the page asks its table for, by its whole name."""
    html = FILES["/index.html"]
    named = set(re.findall(r'data-(?:word|title|placeholder|label)="(\w+)"', html))
    for text in SCRIPTS.values():
        named |= set(re.findall(r'\bword\("(\w+)"', text))
    return named


def test_every_word_stands_there_in_both_languages_with_the_same_blanks() -> None:
    for name, texts in WORDS.items():
        assert set(texts) == {"en", "zh"}, name
        assert all(text.strip() for text in texts.values()), name
        blanks = [sorted(re.findall(r"\{(\w+)\}", text)) for text in texts.values()]
        assert blanks[0] == blanks[1], name
        assert re.search(r"[\u4e00-\u9fff]", texts["zh"]), name
        assert not re.search(r"[\u4e00-\u9fff]", texts["en"]), name


def test_nouns_that_are_counted_have_a_word_for_one() -> None:
    counted = 0
    for name, texts in WORDS.items():
        unguarded = re.search(r"\{\w+\} (bars|notes|layers)\b", texts["en"])
        assert unguarded is None, (name, unguarded)
        for key, one, more in re.findall(r"\{(\w+)\|(\w+)\|(\w+)\}", texts["en"]):
            assert f"{{{key}}} {{{key}|" in texts["en"] and more == f"{one}s", name
            counted += 1
        assert "|" not in texts["zh"], "Chinese nouns have one form"
    assert counted > 5


def test_every_word_that_the_page_names_stands_in_the_table() -> None:
    assert len(named_words()) > 50
    assert named_words() - set(WORDS) == set()


def test_no_word_of_the_table_is_there_for_nothing() -> None:
    everywhere = "".join(SCRIPTS.values()) + FILES["/index.html"]
    for name in WORDS:
        is_named = f'"{name}"' in everywhere
        assert is_named or name.startswith("error_"), name


def test_no_words_stand_in_the_page_itself() -> None:
    class Texts(HTMLParser):
        found: list[str] = []

        def handle_data(self, data: str) -> None:
            self.found.append(data.strip())

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            said = {name: value for name, value in attrs}
            for name in ("title", "placeholder", "aria-label", "alt"):
                self.found.append(said.get(name) or "")

    parser = Texts()
    parser.feed(FILES["/index.html"])
    assert set(parser.found) - {""} <= UNTRANSLATED
    for path, text in SCRIPTS.items():
        assert not re.search(r"[\u4e00-\u9fff]", text), path


def test_errors_that_a_page_words_itself_are_errors_that_the_server_has() -> None:
    from pathlib import Path

    import meloformer.demo as package

    folder = Path(package.__file__).parent
    sources = "".join(path.read_text() for path in folder.glob("*.py"))
    codes = set(re.findall(r'PageError\(\s*"(\w+)"', sources)) | {"connection"}
    assert issubclass(PageError, Exception) and "queue_full" in codes
    worded = {name.removeprefix("error_") for name in WORDS if name.startswith("error_")}
    assert worded <= codes, worded - codes


def test_the_page_needs_nothing_from_elsewhere() -> None:
    for path, text in FILES.items():
        links = set(re.findall(r"https?://[^\s\"'<>]+", text))
        assert links <= {"http://www.w3.org/2000/svg"}, path
        assert "eval(" not in text and "innerHTML" not in text, path
    assert not re.search(
        r"<script(?! type=\"module\" src=)|\son\w+=|\sstyle=", FILES["/index.html"]
    )


def test_all_that_the_page_loads_is_served() -> None:
    html = FILES["/index.html"]
    loaded = set(re.findall(r'(?:src|href)="([^"]+)"', html))
    for text in SCRIPTS.values():
        loaded |= set(re.findall(r'from "\./([^"]+)"', text))
    loaded |= {"words.json"}
    assert {f"/{name}" for name in loaded} <= set(FILES)
    assert {f"/{name}" for name in loaded} | {"/", "/index.html"} == set(FILES)
