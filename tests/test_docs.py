"""What documents promise beyond single commands: two languages alike, links, figures, the roads."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from meloformer.benchmarks.card_table import card_rows
from meloformer.benchmarks.workload import Workload
from meloformer.release.smoke import write_pieces
from tests.documents import DOCUMENTS, ROOT, code_of

DOCS = ROOT / "docs"
ENGLISH, CHINESE = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
)


def sections(text: str) -> list[str]:
    return re.split(r"^## ", text, flags=re.MULTILINE)


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def test_the_two_readmes_name_each_other_on_their_first_line() -> None:
    assert "](README.zh-CN.md)" in ENGLISH.splitlines()[0]
    assert "](README.md)" in CHINESE.splitlines()[0]


def test_both_readmes_have_the_same_commands_row_by_row_and_section_by_section() -> None:
    rows = [
        [sorted(spans(line)) for line in text.splitlines() if line.startswith("|")]
        for text in (ENGLISH, CHINESE)
    ]
    for english, chinese in zip(*rows, strict=False):
        assert english == chinese
    assert len(rows[0]) == len(rows[1])
    assert len(sections(ENGLISH)) == len(sections(CHINESE))
    for english, chinese in zip(sections(ENGLISH), sections(CHINESE), strict=True):
        assert sorted(spans(english)) == sorted(spans(chinese)), english[:40]
        links = [sorted(re.findall(r"\]\(([^)]+)\)", text)) for text in (english, chinese)]
        assert [one for one in links[0] if one[:6] != "README"] == [
            one for one in links[1] if one[:6] != "README"
        ]


def test_both_readmes_have_the_same_blocks_of_code_but_for_what_comments_say() -> None:
    def blocks(text: str) -> list[list[str]]:
        found = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        return [[line.split("#")[0].strip() for line in block.splitlines()] for block in found]

    assert blocks(ENGLISH) == blocks(CHINESE) and blocks(ENGLISH)
    trees = [re.findall(r"^ {4,6}([\w/]+/)\s", text, re.MULTILINE) for text in (ENGLISH, CHINESE)]
    assert trees[0] == trees[1] and trees[0]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_to_a_file_and_to_a_heading_of_it(document) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            made = [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings]
            assert anchor in made, link


def test_files_and_names_of_the_page_on_extending_are_there() -> None:
    text = (DOCS / "extending.md").read_text()
    named = re.findall(r"`((?:meloformer|tests|launch)/[\w/]+(?:\.py|/))`", text)
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists(), name
    source = "\n".join(path.read_text() for path in (ROOT / "meloformer").rglob("*.py"))
    for name in re.findall(r"`([A-Z]\w+|[a-z]+_\w+)`", text):
        assert re.search(rf"\b{name}\b", source), name


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_modelled_hours_of_a_recipe_are_those_of_the_formula(size: str) -> None:
    text = (DOCS / "recipes" / f"train_{size}.md").read_text()
    workload = Workload(
        pieces=529_000, epochs=3, tokens_per_piece=5418, model_size=size, max_seq_len=8192
    )
    rows = {row.card.name: row for row in card_rows(workload, mfu=0.4)}
    told = re.findall(r"^\| (H\w+|RTX \w+) \| ([\d.]+) \| (\d+) \|$", text, re.MULTILINE)
    assert [card for card, *_ in told] == ["H800", "H200", "RTX 4090"]
    for card, hours, batch in told:
        assert (f"{rows[card].hours:.2f}", str(rows[card].batch)) == (hours, batch), card


def test_measured_figures_of_recipes_stand_in_the_log() -> None:
    log = (ROOT / "LOG.md").read_text()
    figures = {
        "train_tiny": ["6 min 9 s", ".892", "1.343", "65 minutes", "3.979", "6.575"],
        "qformer": ["12,820", ".885, .856, .846", "25,831,936"],
        "diffusion_bridge": [],
        "adapter": ["262,912", "1.5808", "1.5834", "1.5756"],
        "soft_prompt": ["22 and 27 minutes", "1.5595", "1.5585", "-.018"],
    }
    for name, wanted in figures.items():
        page = (DOCS / "recipes" / f"{name}.md").read_text()
        for figure in wanted:
            assert figure in page, (name, figure)
            assert figure in log or figure in (DOCS / "text_to_music.md").read_text(), figure


def run(folder: Path, line: str) -> str:
    """A command as a user types it, in a folder where the checkout's launch/ is."""
    words = shlex.split(line)
    if words[0] == "python":
        words[0] = sys.executable
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def blocks_of(path: Path, kind: str = "sh") -> list[str]:
    """Lines of its blocks of code."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for block in found for line in block.splitlines()]


# Set-up, several GPUs, and what waits for a terminal.
NOT_RUN = ("make setup", "torchrun", "watch.py --run runs/my_music")


@pytest.mark.slow
@pytest.mark.parametrize(("midi", "music"), [("my_midi", "my_music"), ("我的 MIDI", "我的音乐")])
def test_the_road_from_own_midi_to_own_music_can_be_walked(tmp_path, midi, music) -> None:
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    write_pieces(tmp_path / midi, count=40)
    for number, path in enumerate(sorted((tmp_path / midi).glob("*.mid"))):
        path.rename(path.with_name(f"曲子 {number}.mid" if midi != "my_midi" else f"{number}.mid"))
    lines = [line for line in blocks_of(DOCS / "own_music.md")]
    lines = [line for line in lines if not line.startswith("make") and "torchrun" not in line]
    lines = [line for line in lines if "watch.py" not in line]
    assert len(lines) == 10
    for line in lines:
        line = re.sub(r"--max_steps \d+", "--max_steps 2", line)
        line = re.sub(r"--warmup_steps \d+", "--warmup_steps 1", line)
        for name, other in (("my_midi", midi), ("my_music", music)):
            line = re.sub(
                rf"\S*\b{name}\b", lambda w, a=name, b=other: shlex.quote(w[0].replace(a, b)), line
            )
        run(tmp_path, line)
    run(tmp_path, f"python launch/tools/watch.py --run {shlex.quote(f'runs/{music}')} --once")
    assert len(list((tmp_path / "music").glob("*.mid"))) == 5
    assert (tmp_path / "reports" / "music" / "report.html").is_file()
    assert (tmp_path / "reports" / midi / "report.html").is_file()


@pytest.mark.slow
def test_the_rule_of_the_page_on_extending_trains_two_steps(tmp_path, chorale_shards) -> None:
    page = DOCS / "extending.md"
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    (tmp_path / "my_rule.json").write_text("\n".join(blocks_of(page, "json")))
    (line,) = [one for one in blocks_of(page) if "--output runs/my_rule" in one]
    small = "--max_seq_len 512 --num_workers 0 --batch_size 1 --gradient_accumulation_steps 1"
    line = line.replace("data_shards/<name>", str(chorale_shards))
    run(tmp_path, f"{line} {small} --max_steps 2 --validation_rows 2 --samples 0")
    config = json.loads((tmp_path / "runs/my_rule/model/config.json").read_text())
    assert config["rule"][1]["bar_distances"] == [0, 1, 2, 4, 8, 16]
    (tmp_path / "my_rule.json").unlink()
    run(tmp_path, "python launch/generate.py --checkpoint runs/my_rule --bars 2 --output out.mid")
    assert (tmp_path / "out.mid").is_file()


def test_pip_is_told_of_no_index_but_the_users() -> None:
    """PIP_INDEX_URL reaches pip, since nothing that pip is given says otherwise."""
    environment = {**os.environ, "PIP_INDEX_URL": "https://mirror.example/simple"}
    said = subprocess.check_output(
        ["make", "--dry-run", "--always-make", "setup", "VENV=.venv-none"],
        cwd=ROOT,
        env=environment,
        text=True,
    )
    assert "pip install" in said and "index-url" not in said and "env -i" not in said
    makefile = (ROOT / "Makefile").read_text()
    assert "--isolated" not in makefile and "unexport" not in makefile
    assert "index-url" not in code_of(ENGLISH)


def figure(number: float, digits: int = 2, sign: str = "") -> str:
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{number:{sign}.{digits}f}")


def interval(found: dict, sign: str = "") -> str:
    mean, low, high = (figure(found[key], sign=sign) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


@pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_the_arena_of_the_readmes_is_that_of_its_report(readme: str) -> None:
    report = json.loads((ROOT / "reports" / "arena-multi-notes.json").read_text())
    rows = re.findall(r"^\| `(\w+)` \| ([^`]*) \|$", readme, re.MULTILINE)
    told = {name: row.split(" | ") for name, row in rows if name in report["systems"]}
    assert list(told) == list(report["systems"])
    for name, system in report["systems"].items():
        seconds = [seed["seconds"] for seed in system["seeds"]]
        assert told[name] == [
            f"{system['num_parameters']:,}",
            f"{sum(seconds) / len(seconds):.0f}",
            interval(system["nats_per_note"]),
            "-" if name == "museformer" else interval(system["less_the_first"], "+"),
            figure(system["seconds_per_generated_minute"], 1),
            f"{100 * system['decodes']['mean']:.0f} %",
            interval(system["similarity_error"]),
        ]
    for part in ("train", "held_out", "settings"):
        assert f"{report[part]['notes']:,}" in readme
    in_time = json.loads((ROOT / "reports" / "arena-multi-minutes.json").read_text())
    for system in in_time["systems"].values():
        assert figure(system["nats_per_note"]["mean"]) in readme
