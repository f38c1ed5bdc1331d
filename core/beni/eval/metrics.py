"""How an answer is judged: what share of the credit it gets."""

import re
from collections import Counter
from collections.abc import Callable, Mapping

from beni.errors import DataError
from beni.sample import Metric, Sample

AGREE = 3
"""People who must have said the same for the whole credit (VQA)."""


def check(sample: Sample) -> None:
    """Refuse an item that its metric cannot judge.

    Raises:
        DataError: says what it lacks.
    """
    if sample.metric == "vqa" and len(sample.answers) <= AGREE:
        raise DataError(
            f"sample '{sample.id}': metric=vqa compares with what several people answered, usually ten; it has "
            f"{len(sample.answers)} answers: use metric=exact"
        )
    if sample.metric == "choice" and not all(sample.choices):
        raise DataError(f"sample '{sample.id}': one of its choices is empty")
    if sample.metric == "choice" and sample.answer not in sample.choices:
        raise DataError(
            f"sample '{sample.id}': metric=choice takes the likeliest of its choices, and its answer "
            f"'{sample.answer}' is none of them: {', '.join(sample.choices) or 'it has none'}"
        )


def score(prediction: str, sample: Sample) -> float:
    """The share of the credit, 0 to 1, by the sample's metric."""
    return _SCORES[sample.metric](prediction, sample)


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


_SCORES: Mapping[Metric, Callable[[str, Sample], float]] = {"exact": exact, "vqa": vqa, "choice": chosen}


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
