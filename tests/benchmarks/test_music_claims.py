"""Claims about text control find their figures in the judge's own report."""

import json
from pathlib import Path

from meloformer.benchmarks.music_claims import MUSIC
from tests.evaluation.control_reports import write_report

SETTINGS = {"model": "base", "bridge": "qformer", "encoder": "minilm"}


def test_each_claim_reads_its_own_figure(tmp_path: Path) -> None:
    metrics = ("tempo_bin", "tempo_near", "key", "key_near")
    # So many of eight texts came true, a different number for each claim.
    came = {
        f"text, {way}": {
            metric: [1.0] * (first + place) + [0.0] * (8 - first - place)
            for place, metric in enumerate(metrics)
        }
        for way, first in (("summaries", 1), ("attributes", 4))
    }
    kept = {"tempo_bin": [1.0] * 8, "metre": [1.0] * 8, "instruments": [1.0] * 6 + [0.5] * 2}
    came["text, strict"] = {"key": [0.0] * 8}
    folder = write_report(tmp_path / "r", came, settings=SETTINGS, kept={"text, strict": kept})
    report = json.loads((folder / "control.json").read_text())
    found = {
        claim.id: claim.figure(report)[0] for claim in MUSIC if claim.command.name == "control"
    }
    assert found == {
        "control-summaries-tempo-bin": 12.5,
        "control-summaries-tempo-within-one-bin": 25.0,
        "control-summaries-key": 37.5,
        "control-summaries-key-or-relative": 50.0,
        "control-attributes-tempo-bin": 50.0,
        "control-attributes-tempo-within-one-bin": 62.5,
        "control-attributes-key": 75.0,
        "control-attributes-key-or-relative": 87.5,
        "control-strict": 87.5,
    }
