"""How answers are judged: what each gets, and what the mean of that is."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from beni.errors import DataError
from beni.eval.captions import check_captions, cider
from beni.eval.figure import ACCURACY, CIDER, Figure
from beni.sample import Metric, Sample

AGREE = 3
"""People who must have said the same for the whole credit (VQA)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a metric is."""

    score: Callable[[Sequence[str], Sequence[Sample]], list[float]]
    """What each of some predictions gets, of samples that are judged together."""
    check: Callable[[Sequence[Sample]], None]
    """Refuses what it cannot judge, with a BeniError that says why."""
    figure: Figure = ACCURACY
    """What the mean over items is."""


def check(samples: Sequence[Sample]) -> None:
    """Refuse items that their metric cannot judge.

    Args:
        samples: judged together.

    Raises:
        DataError: says what one of them lacks.
        ConfigError: a metric of theirs needs a package that is not installed.
    """
    for metric, numbers in _by_metric(samples).items():
        RULES[metric].check([samples[n] for n in numbers])


def score(predictions: Sequence[str], samples: Sequence[Sample]) -> list[float]:
    """What each prediction gets, by the metric of its sample.

    Args:
        predictions: one for each sample.
        samples: judged together: where words are weighed by how rare they are, it is among these.
    """
    found = [0.0] * len(samples)
    for metric, numbers in _by_metric(samples).items():
        worth = RULES[metric].score([predictions[n] for n in numbers], [samples[n] for n in numbers])
        for n, each in zip(numbers, worth, strict=True):
            found[n] = each
    return found


def figure_of(metric: Metric) -> Figure:
    """What the mean over items that are judged so is."""
    return RULES[metric].figure


def exact(prediction: str, sample: Sample) -> float:
    """Equal to the answer, up to case, outer space and a final full stop."""
    return float(_plain(prediction) == _plain(sample.answer))


def chosen(prediction: str, sample: Sample) -> float:
    """The answer itself: choices may differ by nothing but capitals."""
    return float(prediction == sample.answer)


def vqa(prediction: str, sample: Sample) -> float:
    """The VQA accuracy: a third for each person who said the same, up to three.

    In the mean over leaving out one person at a time. Reference: Antol et al. 2015 (arXiv 1505.00468, §4);
    GT-Vision-Lab/VQA, vqaEval.py. There, answers on which all people agree are compared letter by letter; here they are
    put into the same form as all others first, as the evaluation server does.
    """
    said = [normalised(answer) for answer in sample.answers]
    same = Counter(said)[normalised(prediction)]
    people = len(said)
    return ((people - same) * min(same / AGREE, 1.0) + same * min((same - 1) / AGREE, 1.0)) / people


def normalised(text: str) -> str:
    """An answer without articles and punctuation, numbers as digits, contractions with their apostrophes.

    Reference: GT-Vision-Lab/VQA, vqaEval.py (processPunctuation, processDigitArticle).
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    plain = text
    for mark in _MARKS:
        apart = f"{mark} " in text or f" {mark}" in text or _THOUSANDS.search(text)
        plain = plain.replace(mark, "" if apart else " ")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", plain).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _by_metric(samples: Sequence[Sample]) -> dict[Metric, list[int]]:
    found: dict[Metric, list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        found[sample.metric].append(number)
    return found


def _each(credit: Callable[[str, Sample], float]) -> Callable[[Sequence[str], Sequence[Sample]], list[float]]:
    """Items that are judged one by one."""
    return lambda predictions, samples: [credit(*each) for each in zip(predictions, samples, strict=True)]


def _check_nothing(samples: Sequence[Sample]) -> None:
    """Every item has an answer."""


def _check_people(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if len(sample.answers) <= AGREE:
            raise DataError(
                f"sample '{sample.id}': metric=vqa compares with what several people answered, usually ten; it has "
                f"{len(sample.answers)} answers: give each item the field `answers`, or use metric=exact"
            )


def _check_choices(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if not all(sample.choices):
            raise DataError(f"sample '{sample.id}': one of its choices is empty")
        if sample.answer not in sample.choices:
            raise DataError(
                f"sample '{sample.id}': metric=choice takes the likeliest of its choices, and its answer "
                f"'{sample.answer}' is none of them: {', '.join(sample.choices) or 'it has none'}"
            )


RULES: Mapping[Metric, Rule] = {
    "exact": Rule(_each(exact), _check_nothing),
    "vqa": Rule(_each(vqa), _check_people),
    "choice": Rule(_each(chosen), _check_choices),
    "caption": Rule(cider, check_captions, CIDER),
}


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".")


_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
}
_CONTRACTED = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've
must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't
what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()  # noqa: SIM905
_CONTRACTIONS = {
    **{word[:at] + word[at + 1 :]: word for word in _CONTRACTED for at, letter in enumerate(word) if letter == "'"},
    "somebody'd": "somebodyd",  # the other way round, as there
}
"""Words without one of their apostrophes."""
