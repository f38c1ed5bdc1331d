"""Captions against what several people wrote: CIDEr-D and BLEU-4 of pycocoevalcap (the extra `captions`).

That package cuts captions into words with a program in Java, Stanford's PTBTokenizer. `words` does the same by a few
rules; docs/evaluation.md says how often they differ, and by how much figures do. The package is imported where it is
used: nothing else of beni needs it.
"""

import re
from collections.abc import Sequence

from beni.errors import ConfigError, DataError, with_extra
from beni.sample import Sample

BEST = 10.0
"""Of CIDEr-D: all references are the same as the caption, and have words of their own in every length up to four."""


def check_captions(samples: Sequence[Sample]) -> None:
    """Refuse what CIDEr-D cannot tell apart.

    Args:
        samples: judged together.

    Raises:
        ConfigError: pycocoevalcap is not installed.
        DataError: there is one item alone, in which no word is rarer than another; or an item without words.
    """
    try:
        import pycocoevalcap.cider.cider  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"metric=caption needs pycocoevalcap ({error}): {with_extra('captions')}") from error
    if len(samples) == 1:
        raise DataError(
            f"sample '{samples[0].id}' would be judged alone: metric=caption weighs words by how few items have them, "
            f"so it needs two items at least, and figures of a few say little"
        )
    for sample in samples:
        if not any(map(words, references(sample.answer, sample.answers))):
            raise DataError(f"sample '{sample.id}': metric=caption compares words, and its captions have none")


def references(answer: str, answers: Sequence[str]) -> tuple[str, ...]:
    """What a caption is compared with: all that people wrote, the answer among them."""
    return tuple(answers) if answer in map(str.strip, answers) else (answer, *answers)


def cider(predictions: Sequence[str], samples: Sequence[Sample]) -> list[float]:
    """CIDEr-D of each caption, 0 to 10; its mean over items is the corpus's, which papers give times 100.

    How rare words are is counted in the references of all samples. Reference: Vedantam et al. 2015 (arXiv 1411.5726,
    §8); computed by pycocoevalcap, cider_scorer.py.
    """
    from pycocoevalcap.cider.cider import Cider

    wanted = {n: _cut(references(sample.answer, sample.answers)) for n, sample in enumerate(samples)}
    said = {n: _cut([text]) for n, text in enumerate(predictions)}
    _, scores = Cider().compute_score(wanted, said)
    return [float(score) for score in scores]


def bleu4(predictions: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of captions as a corpus, 0 to 1, with the length of the closest reference.

    It is no mean over items. Reference: Papineni et al. 2002; computed by pycocoevalcap, bleu_scorer.py.

    Args:
        predictions: one for each item.
        wanted: the references of each item.
    """
    from pycocoevalcap.bleu.bleu import Bleu

    scores, _ = Bleu(4).compute_score(
        {n: _cut(texts) for n, texts in enumerate(wanted)},
        {n: _cut([text]) for n, text in enumerate(predictions)},
        verbose=0,
    )
    return float(scores[3])


def words(caption: str) -> list[str]:
    """A caption's words in small letters, without punctuation: `the dog 's ball` of "The dog's ball.".

    As Stanford's PTBTokenizer cuts them with `-lowerCase`, less what pycocoevalcap then takes for punctuation: brackets
    stay, as `-lrb-` and `-rrb-`, which its list has in capitals.
    """
    text = _CLITIC.sub(lambda found: f" {found[0]}", caption.lower().replace("’", "'"))
    return [_BRACKETS.get(word, word) for word in _WORD.findall(text) if word not in _PUNCTUATION]


def _cut(texts: Sequence[str]) -> list[str]:
    return [" ".join(words(text)) for text in texts]


_CLITIC = re.compile(
    r"(?<=\w)(?:n't|'(?:s|m|d|ll|re|ve))(?!\w)"
    r"|(?<=\bcan)not\b|(?<=\b(?:gon|wan))na\b|(?<=\b(?:gim|lem))me\b|(?<=\bgot)ta\b"
)
_WORD = re.compile(
    r"""(?:[a-z]\.){2,}                                         # u.s.
    | \b(?:mr|mrs|ms|dr|jr|sr|st|mt|ft|vs|etc)\.
    | 'n'
    | '(?:s|m|d|ll|re|ve)(?!\w)
    | \w+(?:[-./&]\w+ | '[^\W\d]\w* | (?<=\d)[,:]\d+)*           # t-shirt, 3.5, n't, 10:30
    | [^\w\s]""",
    re.VERBOSE,
)
_PUNCTUATION = frozenset(".,;:?!'\"`-–—…“”‘")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
