"""Scores of answers about bars, with intervals over pieces: bars of one piece are alike."""

from dataclasses import dataclass

import numpy as np

from meloformer.evaluation.bar_facts import COLUMNS, QUESTIONS, Question

_NUM_RESAMPLES = 1000
_INTERVAL = (2.5, 97.5)
_IS_SAID = 0.5
_TOO_EASY = 0.95


@dataclass(frozen=True)
class Score:
    """A score, and the interval that 95 % of resampled sets of pieces fall into.

    `value` is None where the question has no answer: a tempo that never changes.
    """

    value: float | None
    low: float | None
    high: float | None


def scored(
    question: Question, answers_NC: np.ndarray, facts_NC: np.ndarray, piece_N: np.ndarray
) -> Score:
    """Score the answers to one question.

    Args:
        question: which.
        answers_NC: of every bar, in the columns of all questions.
        facts_NC: what is true.
        piece_N: piece of each bar, 0..P - 1.
    """
    columns = COLUMNS[question.name]
    counts_NK = _counts(question, answers_NC[:, columns], facts_NC[:, columns])
    counts_PK = np.stack([np.bincount(piece_N, weights=count_N) for count_N in counts_NK.T], axis=1)
    value = _of_counts(question, counts_PK.sum(0))
    if value is None:
        return Score(None, None, None)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(
        len(counts_PK), np.full(len(counts_PK), 1 / len(counts_PK)), _NUM_RESAMPLES
    )
    found = [_of_counts(question, counts_K) for counts_K in weights @ counts_PK]
    low, high = np.percentile([value for value in found if value is not None], _INTERVAL)
    return Score(value, float(low), float(high))


def value_of(question: Question, answers_NC: np.ndarray, facts_NC: np.ndarray) -> float | None:
    """The score alone; see `scored`."""
    columns = COLUMNS[question.name]
    counts_NK = _counts(question, answers_NC[:, columns], facts_NC[:, columns])
    return _of_counts(question, counts_NK.sum(0))


def constant_answers(facts_NC: np.ndarray) -> np.ndarray:
    """(C,) the best answers that look at nothing: what chance means.

    The most frequent class, the mean, the set of instruments with the best F1.

    Args:
        facts_NC: of the bars that probes learn from.
    """
    answers = facts_NC.mean(axis=0, dtype=np.float64)
    for question in QUESTIONS:
        share = answers[COLUMNS[question.name]]
        if question.kind == "many":
            order = np.argsort(-share, kind="stable")
            said = np.arange(1, len(share) + 1)
            f1 = 2 * np.cumsum(share[order]) / np.maximum(said + share.sum(), 1e-9)
            chosen = order[: int(f1.argmax()) + 1]
            answers[COLUMNS[question.name]] = np.isin(np.arange(len(share)), chosen)
    return answers


def above_chance(scores: dict[str, Score], chance: dict[str, Score]) -> float:
    """Mean over the questions of the way from chance to a perfect score.

    Questions that nearly every bar answers alike are left out: the way is too short to measure.
    """
    ways = [
        (score.value - least.value) / (1 - least.value)
        for score, least in ((scores[name], chance[name]) for name in scores)
        if score.value is not None and least.value is not None and least.value < _TOO_EASY
    ]
    return float(np.mean(ways)) if ways else float("nan")


def _counts(question: Question, answers_NC: np.ndarray, facts_NC: np.ndarray) -> np.ndarray:
    """(N, K) numbers that add up over bars and that the score follows from."""
    if question.kind == "one":
        has_answer_N = facts_NC.any(1)
        is_right_N = answers_NC.argmax(1) == facts_NC.argmax(1)
        return np.stack([is_right_N & has_answer_N, has_answer_N], axis=1).astype(np.float64)
    if question.kind == "many":
        said_NC, true_NC = answers_NC > _IS_SAID, facts_NC > _IS_SAID
        pairs = (said_NC & true_NC, said_NC & ~true_NC, ~said_NC & true_NC)
        return np.stack([pair.sum(1) for pair in pairs], axis=1).astype(np.float64)
    fact_N = facts_NC[:, 0].astype(np.float64)
    error_N = (answers_NC[:, 0] - fact_N) ** 2
    return np.stack([error_N, fact_N, fact_N**2, np.ones(len(fact_N))], axis=1)


def _of_counts(question: Question, counts_K: np.ndarray) -> float | None:
    if question.kind == "one":
        right, asked = counts_K
        return float(right / asked) if asked else None
    if question.kind == "many":
        hits, wrong, missed = counts_K
        return float(2 * hits / (2 * hits + wrong + missed)) if hits + wrong + missed else None
    error, total, squares, count = counts_K
    spread = squares - total**2 / count
    # A number that is the same in all bars differs from its mean by nothing but rounding.
    return float(1 - error / spread) if spread > 1e-6 * count else None
