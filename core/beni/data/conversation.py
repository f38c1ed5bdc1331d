"""Conversations as data files write them, to turns: who says what, and where the images stand.

What is wrong is said behind `where`, which names the file and the item.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from beni.errors import DataError, counted
from beni.sample import IMAGE_MARK, ROLES, Turn, split_marks

USUAL = {
    "image": ("images", "image", "img"),
    "question": ("question", "query", "instruction", "prompt", "problem"),
    "answer": ("answer", "answers", "label", "response", "output", "caption", "text"),
    "talk": ("messages", "conversations", "texts", "conversation"),
}
"""Names of columns and fields that are recognised, first match wins."""


def usual(kind: str, names: Container[str]) -> str:
    """The first of the usual names that is among these; empty if none is."""
    return next((name for name in USUAL[kind] if name in names), "")


def turns_of(talk: Any, where: str) -> list[Turn]:
    """A list of {role, content}, {from, value} or {user, assistant} as turns that place images 0, 1, … by their marks.

    Raises:
        DataError: it is something else, or empty.
    """
    if not isinstance(talk, list) or not talk:
        raise DataError(f"{where}: the conversation is {talk!r}, not a list of turns")
    turns: list[Turn] = []
    placed = 0
    for said in talk:
        for role, content in _said(said):
            text = content if isinstance(content, str) else _flatten(content)
            if isinstance(role, str) and role not in ROLES:
                raise DataError(f"{where}: turn {len(turns)} is of '{role}', and not of {', '.join(ROLES)}")
            if role not in ROLES or text is None:
                raise DataError(
                    f"{where}: turn {len(turns)} is not {{role, content}}, {{from, value}} or {{user, assistant}}"
                )
            parts = split_marks(text, placed)
            placed += sum(isinstance(part, int) for part in parts)
            turns.append(Turn(ROLES[role], parts))
    return turns


def exchange(question: str, answer: str) -> list[Turn]:
    """A question, whose marks place images 0, 1, …, and its answer, which is text alone."""
    return [Turn.user(question), Turn("assistant", (answer,))]


class Answered(NamedTuple):
    """What data files say of an answer."""

    answer: str
    answers: tuple[str, ...] = ()
    """Of several people, where there are several."""
    choices: tuple[str, ...] = ()


def answered(value: Any, choices: Any, what: str, where: str) -> Answered:
    """An answer; of several the first is the one to learn.

    Args:
        value: a text or a number, a list of these or of {answer: …}; or which choice it is, from 0 or A on;
            a whole number is always that of a choice.
        choices: a list of texts or numbers, or nothing.
        what: it is called, for messages.
        where: it stands.

    Raises:
        DataError: it is something else.
    """
    several = value if isinstance(value, list) else [value]
    said = [each["answer"] if isinstance(each, Mapping) and "answer" in each else each for each in several]
    texts = tuple(words(each, what, where) for each in said)
    if not texts:
        raise DataError(f"{where}: the {what} is an empty list")
    if choices is not None and not isinstance(choices, list):
        raise DataError(f"{where}: the choices are {choices!r}, not a list")
    offered = tuple(words(each, "choice", where).strip() for each in choices or ())
    if offered:
        texts = tuple(_chosen(each, text.strip(), offered, where) for each, text in zip(said, texts, strict=True))
    return Answered(texts[0], texts if len(texts) > 1 else (), offered)


def _chosen(value: Any, text: str, offered: Sequence[str], where: str) -> str:
    """The choice that is meant: by its number, if it is a whole number; else by its words, number or letter.

    Raises:
        DataError: a text that is one choice and the number or the letter of another.
    """
    number = int(text) if text.isdecimal() else ord(text) - ord("A") if len(text) == 1 else -1
    numbered = offered[number] if 0 <= number < len(offered) else text
    if text in offered and numbered != text and not isinstance(value, int):
        raise DataError(
            f"{where}: the answer '{text}' is one of the choices, and the number or letter of another one, "
            f"'{numbered}': give whole numbers, or only words"
        )
    return numbered if isinstance(value, int) or text not in offered else text


def words(value: Any, what: str, where: str) -> str:
    """A text or a number as text; of several the first.

    Raises:
        DataError: it is something else.
    """
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, (str, int, float)):
        raise DataError(f"{where}: the {what} is {value!r}, not a text or a number")
    return str(value)


def show(turns: Sequence[Turn], images: int, where: str) -> tuple[Turn, ...]:
    """Turns that place so many images; those of a conversation without any mark stand in front of its first question.

    Raises:
        DataError: there are other numbers of marks and of images, or no question.
    """
    placed = marks(turns)
    if placed == images:
        return tuple(turns)
    if placed:
        raise DataError(f"{where}: has {counted(placed, f'{IMAGE_MARK} mark')} but {counted(images, 'image')}")
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise DataError(f"{where}: has images but no turn of the user to show them in")
    said = turns[first].content
    shown = Turn("user", (*range(images), "\n", *said) if said else tuple(range(images)))
    return (*turns[:first], shown, *turns[first + 1 :])


def marks(turns: Sequence[Turn]) -> int:
    """How many images turns place."""
    return sum(isinstance(part, int) for turn in turns for part in turn.content)


def check_answers(turns: Sequence[Turn], where: str) -> None:
    """Refuse what cannot be trained.

    Raises:
        DataError: an answer with an image in it, or no answer at the end.
    """
    for position, turn in enumerate(turns):
        if turn.role == "assistant" and any(isinstance(part, int) for part in turn.content):
            raise DataError(
                f"{where}: turn {position} is an answer with an {IMAGE_MARK} mark; images belong to what the human says"
            )
    if turns[-1].role != "assistant":
        raise DataError(f"{where}: ends without an answer (its last turn is of the {turns[-1].role})")


def _said(entry: Any) -> list[tuple[Any, Any]]:
    """(role, content) of an entry of a conversation; two of them where it holds a question and its answer."""
    if not isinstance(entry, Mapping):
        return [(None, None)]
    if entry.get("user") is not None:
        return [("user", entry["user"]), ("assistant", entry.get("assistant"))]
    return [(entry.get("role") or entry.get("from"), entry["content"] if "content" in entry else entry.get("value"))]


def _flatten(content: Any) -> str | None:
    """A content list of {type: text | image} entries as text with marks; None if it is not one."""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return None
    return "".join(IMAGE_MARK if part.get("type") == "image" else str(part.get("text") or "") for part in content)
