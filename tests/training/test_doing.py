import json
import os
import time
from pathlib import Path

import pytest

from meloformer.training import doing
from meloformer.training.doing import DOING_NAME, DoingWriter, read_doing
from tests.training.full_disk import largest_file
from tests.training.launching import TIME_LIMIT_SECONDS


def wait_for(folder: Path, moment: str, least_seconds: float = 0.0) -> None:
    """Until the file says that this has been done for so long."""
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    while True:
        found = read_doing(folder, time.time())
        if found is not None and found.moment == moment and found.seconds >= least_seconds:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def test_a_run_says_what_it_does_and_for_how_long_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doing, "SECONDS_BETWEEN_BEATS", 0.01)
    monkeypatch.setattr(doing, "_MOST_SECONDS_TO_END", TIME_LIMIT_SECONDS)
    said = "the data of step 1"
    writer = DoingWriter(tmp_path, lambda: said)
    wait_for(tmp_path, said)
    with largest_file(0):
        time.sleep(0.05)  # a full disk does not end the thread
    began = time.monotonic()
    said = "the validation after step 1"
    wait_for(tmp_path, said, least_seconds=0.5)
    told = json.loads((tmp_path / DOING_NAME).read_text())
    # By the clock that the thread counts with, whatever the clock of files says.
    assert told["seconds"] <= time.monotonic() - began, "it counts anew"
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_stands_still_tells_of_a_process_that_is_gone(tmp_path: Path) -> None:
    now = time.time()
    assert read_doing(tmp_path, now) is None
    path = tmp_path / DOING_NAME
    path.write_text(json.dumps({"moment": "a save", "seconds": 5.0}))
    os.utime(path, (now, now))
    found = read_doing(tmp_path, now + 30)
    assert found is not None and found.moment == "a save" and 34 < found.seconds < 36
    assert read_doing(tmp_path, now + 3600) is None
    path.write_text('{"mom')
    assert read_doing(tmp_path, now) is None
