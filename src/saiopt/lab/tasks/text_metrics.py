"""How close generated sentences are to those that people wrote."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from saiopt.lab.data.published_data import require

_BLEU = "nltk.translate.bleu_score"
_NIST = "nltk.translate.nist_score"
_METEOR = "nltk.translate.meteor_score"
_ROUGE = "rouge_score.rouge_scorer"
_ORDERS = (1, 2, 3, 4)
_CIDER_SIGMA = 6.0


def require_packages() -> None:
    """See that what :func:`text_metrics` needs is installed, before hours are spent.

    Raises:
        FileNotFoundError: If a package is missing.
    """
    for module in (_BLEU, _NIST, _METEOR, _ROUGE):
        require(module, "published")


def text_metrics(
    generated: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Score sentences by all metrics of the E2E challenge.

    BLEU, NIST and METEOR come from NLTK, ROUGE-L (the best over the references) from
    rouge-score, CIDEr from :func:`cider`. Texts are split at spaces, in lower case; the
    challenge's own scripts split off punctuation, so its numbers differ somewhat.
    METEOR needs WordNet (``python -m nltk.downloader wordnet``) and is left out without
    it.

    Args:
        generated: One sentence per input.
        references: All sentences that people wrote for each input.

    Returns:
        ``bleu`` in percent, ``nist``, ``rouge_l`` and ``meteor`` in [0, 1], ``cider``.

    Raises:
        FileNotFoundError: If a package is not installed.
    """
    bleu, nist = require(_BLEU, "published"), require(_NIST, "published")
    words = [sentence.lower().split() for sentence in generated]
    known = [[sentence.lower().split() for sentence in group] for group in references]
    smooth = bleu.SmoothingFunction().method1
    longest = max(map(len, words), default=0)
    scores = {
        "bleu": 100 * bleu.corpus_bleu(known, words, smoothing_function=smooth),
        "nist": nist.corpus_nist(known, words, n=5) if longest >= 5 else 0.0,
        "rouge_l": _rouge_l(generated, references),
        "cider": cider(words, known),
    }
    meteor = _meteor(words, known)
    return {name: float(score) for name, score in scores.items()} | meteor


def cider(
    generated: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> float:
    """Score by the rare n-grams that sentences share with their references (CIDEr-D).

    10 · mean over n = 1..4 and references of exp(-(l-l')²/2σ²) min(g, r)·r / (|g| |r|),
    where g and r count n-grams, each weighted by the logarithm of the inverse share of
    inputs whose references have it, l and l' are lengths, and σ = 6. No well-kept
    package has it. Deviates from the original in using no stemming.

    Args:
        generated: Words of one sentence per input.
        references: Words of the reference sentences of each input.

    Returns:
        At least 0; 10 for a copy of the only reference.

    References:
        Vedantam, Zitnick and Parikh 2015, section 4.
    """
    total = 0.0
    for order in _ORDERS:
        counted = [[_ngrams(words, order) for words in group] for group in references]
        inputs = Counter(
            gram for group in counted for gram in set().union(*map(set, group))
        )
        for words, group, counts in zip(generated, references, counted, strict=True):
            own = _weighted(_ngrams(words, order), inputs, len(references))
            scores = [
                _likeness(own, _weighted(other, inputs, len(references)))
                * math.exp(-((len(words) - len(text)) ** 2) / (2 * _CIDER_SIGMA**2))
                for text, other in zip(group, counts, strict=True)
            ]
            total += fmean(scores)
    return 10 * total / (len(_ORDERS) * len(generated))


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def _weighted(
    counts: Counter[tuple[str, ...]], inputs: Counter[tuple[str, ...]], total: int
) -> dict[tuple[str, ...], float]:
    return {
        gram: count * (math.log(total) - math.log(max(inputs[gram], 1)))
        for gram, count in counts.items()
    }


def _likeness(
    own: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]
) -> float:
    shared = sum(
        min(own.get(gram, 0.0), value) * value for gram, value in other.items()
    )
    length = math.hypot(*own.values()) * math.hypot(*other.values())
    return shared / length if length else 0.0


def _rouge_l(generated: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    package = require(_ROUGE, "published")
    scorer = package.RougeScorer(["rougeL"])
    return fmean(
        scorer.score_multi(group, sentence)["rougeL"].fmeasure
        for sentence, group in zip(generated, references, strict=True)
    )


def _meteor(
    generated: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> dict[str, float]:
    package = require(_METEOR, "published")
    try:
        require("nltk.corpus", "published").wordnet.ensure_loaded()
    except LookupError:
        return {}
    scores = [
        package.meteor_score(group, words)
        for words, group in zip(generated, references, strict=True)
    ]
    return {"meteor": fmean(scores)}
