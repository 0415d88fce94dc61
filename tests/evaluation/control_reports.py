"""Reports of the judge, written by its own code from scores that are said by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meloformer.evaluation.bar_similarity import BarPairs
from meloformer.evaluation.control import Findings
from meloformer.evaluation.control_likelihood import likelihood_differences
from meloformer.evaluation.control_likeness import REAL, Likeness
from meloformer.evaluation.control_report import save_report
from meloformer.evaluation.control_rows import JudgedPiece, Row
from meloformer.evaluation.control_scores import METRICS, Wanted

Scores = Mapping[str, Mapping[str, Sequence[float]]]


def write_report(
    folder: Path,
    scores: Scores,
    *,
    nats: Mapping[str, Sequence[float]] | None = None,
    texts: Sequence[str] | None = None,
    wanted: Sequence[Wanted] | None = None,
    keys: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    similarity: Mapping[str, float] | None = None,
    variety: Mapping[str, Sequence[float]] | None = None,
    kept: Scores | None = None,
) -> Path:
    """A report folder.

    Args:
        folder: is made.
        scores: of each row, by metric; metrics that are not named are nan.
        nats: by kind of summaries.
        texts: of the pieces.
        wanted: of the texts.
        keys: of the pieces.
        settings: of the report.
        similarity: of each row, how alike any two bars are; 0 if not said, as of the real pieces.
        variety: of two pieces of one text, by row.
        kept: of rows that were told something, as `scores`.
    """
    num_pieces = len(next(iter(next(iter(scores.values())).values())))
    places = range(num_pieces)
    pieces = [
        JudgedPiece(
            name=("test", keys[place] if keys else f"key{place}", 0, 8),
            ids=np.zeros(0, np.int64),
            text=texts[place] if texts else f"text {place}",
            template="t",
            wanted=wanted[place] if wanted else Wanted(tempo_bpm=120.0, key=3),
        )
        for place in places
    ]
    nothing = dict.fromkeys(METRICS, np.full(num_pieces, np.nan))
    rows = []
    for name, of_row in scores.items():
        source, _, way = name.partition(", ")
        given = {metric: np.array(values, np.float64) for metric, values in of_row.items()}
        came = {
            metric: np.array(values, np.float64)
            for metric, values in (kept or {}).get(name, {}).items()
        }
        rows.append(
            Row(source=source, way=way or None, scores=nothing | given, kept=nothing | came)  # type: ignore[arg-type]
        )
    nats_P = {kind: np.array(values, np.float64) for kind, values in (nats or {}).items()}
    findings = Findings(
        pieces=pieces,
        notes=[f"{num_pieces} pieces"],
        rows=rows,
        nats=nats_P,
        differences=likelihood_differences(nats_P, seed=0) if nats_P else {},
        likeness=Likeness(
            pairs={
                name: BarPairs(
                    sums=np.full((num_pieces, 1), (similarity or {}).get(name, 0.0)),
                    counts=np.ones((num_pieces, 1), np.int64),
                )
                for name in (REAL, *scores)
            },
            variety={name: np.array(of, np.float64) for name, of in (variety or {}).items()},
        ),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_report(folder, findings, settings or {"seed": 0}, seed=0)
    return folder
