"""A report holds what a run says of itself, and nothing that was planted into any of its files."""

import json
import zipfile
from pathlib import Path

import pytest

from meloformer.errors import ConfigError
from meloformer.training.bug_report import collect, default_name, tail, write_report

SECRETS = {
    "user": "eve.adams",
    "host": "dgx-h100-17",
    "token": "hf_QmVycnlTdHJhd0JlcnJ5MDE",
    "key": "9d8c7b6a5f4e3d2c1b0a9d8c7b6a5f4e3d2c1b0a",
    "password": "tr0ub4dor",
    "bucket": "unreleased-songs",
    "address": "10.20.30.40",
}
WORDS = (
    "File /home/{user}/code/x.py by {user}; host: {host}; WANDB_API_KEY={key} HF_TOKEN={token} "
    "--password {password} https://{user}:{password}@{host}/x s3://{bucket}/shards?sig={key} "
    "MASTER_ADDR={address} bearer {token} {address}:29500 ssh {user}@{host}"
).format(**SECRETS)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with all of it in every file, whole lines and cut ones."""
    monkeypatch.setenv("HF_TOKEN", SECRETS["token"])
    folder = tmp_path / SECRETS["user"] / "run"
    folder.mkdir(parents=True)
    settings = {"data": WORDS, "output": str(folder), "seed": 3, "hub": {"password": "tr0ub4dor"}}
    command = ["train.py", "--password", SECRETS["password"], f"--data=s3://{SECRETS['bucket']}"]
    facts = {"settings": settings, "starts": [{"command": command}], "notes": [WORDS]}
    (folder / "run.json").write_text(json.dumps(facts))
    log = [f"2026-11-22 14:04:34,707 INFO step {i}/900, loss 4.5" for i in range(900)]
    (folder / "train.log").write_text("\n".join([*log, WORDS, WORDS[:-9]]))
    step = {"step": 1, "loss": 4.5, "tokens": 512, "loss_by_kind": {"KEY": 1.5}}
    lines = [
        json.dumps(step),
        json.dumps({"step": 2, "event": WORDS}),
        '{"step": 3, "x": "' + WORDS,
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    scores = {"step": 2, "all": {"per_token": 1.25}, "note": WORDS}
    (folder / "validation.jsonl").write_text(json.dumps(scores) + "\n")
    (folder / "checkpoints" / "step-2").mkdir(parents=True)
    (folder / "checkpoints" / "step-2" / "part").write_bytes(b"123")
    return folder


def test_nothing_planted_is_found_in_any_file_of_the_zip(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.zip"
    write_report(path, collect(run, [{"name": "H100", "problems": [WORDS]}], num_lines=200))
    with zipfile.ZipFile(path) as report:
        names = report.namelist()
        everything = {name: report.read(name).decode() for name in names}
    assert set(names) == {
        *("machine.json", "packages.txt", "run.json", "checkpoints.txt"),
        *("train.log", "metrics.jsonl", "validation.jsonl"),
    }
    for name, text in everything.items():
        for secret in (*SECRETS.values(), str(tmp_path), "adams"):
            assert secret not in text, (name, text)
    for secret in SECRETS.values():
        assert secret.encode() not in path.read_bytes()


def test_what_helps_to_find_a_fault_is_there(run: Path) -> None:
    texts = collect(run, [{"name": "H100"}], num_lines=200)
    machine = json.loads(texts["machine.json"])
    assert machine["gpus"] == [{"name": "H100"}] and machine["torch"] and machine["python"]
    assert "\ntorch==" in texts["packages.txt"]
    facts = json.loads(texts["run.json"])
    assert facts["settings"]["seed"] == 3 and facts["settings"]["output"] == "<run>"
    assert facts["starts"][0]["command"][1] == "--password"
    assert texts["train.log"].count("\n") == 199 and "step 899/900, loss 4.5" in texts["train.log"]
    first = json.loads(texts["metrics.jsonl"].splitlines()[0])
    assert first == {"step": 1, "loss": 4.5, "tokens": 512, "loss_by_kind": {"KEY": 1.5}}
    assert json.loads(texts["validation.jsonl"])["all"] == {"per_token": 1.25}
    assert texts["checkpoints.txt"] == "checkpoints/step-2 3 bytes in 1 files\n"


def test_a_damaged_run_is_reported_too_and_a_folder_without_one_refused(
    run: Path, tmp_path: Path
) -> None:
    (run / "run.json").write_text("{ " + WORDS)
    for name in ("metrics.jsonl", "validation.jsonl", "train.log"):
        (run / name).unlink()
    texts = collect(run, [], num_lines=5)
    assert set(texts) == {"machine.json", "packages.txt", "run.json", "checkpoints.txt"}
    assert not any(secret in texts["run.json"] for secret in SECRETS.values())
    with pytest.raises(ConfigError, match=r"found none of run\.json, .*; allowed: a run folder"):
        collect(tmp_path, [], num_lines=5)


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "report.zip"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="allowed: a name that is free"):
        write_report(path, {"a": "b"})
    assert path.read_text() == "mine"


def test_the_end_of_a_long_file_is_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meloformer.training.bug_report._MOST_BYTES", 1234)
    path = tmp_path / "long"
    path.write_text("".join(f"{number:09}\n" for number in range(1000)))
    assert tail(path, 2) == "000000998\n000000999\n"
    lines = tail(path, 10**9).splitlines()
    assert len(lines) == 123 and all(len(line) == 9 for line in lines)


def test_the_default_name_tells_nothing_of_the_run() -> None:
    assert default_name().suffix == ".zip" and default_name().parent == Path()
