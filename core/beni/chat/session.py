"""One page's talk with one or two models: the same questions to all, and what each of them said and looked at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from beni.chat.conversation import Conversation
from beni.chat.sight import Looks, look
from beni.chat.talker import Said, Talker
from beni.eval.generate import Sampling
from beni.sample import ImageRef


@dataclass(frozen=True)
class Side:
    """A model's part of it."""

    said: Conversation = field(default_factory=Conversation)
    looks: Looks = field(default_factory=Looks)
    """Of the last answer, when it is there."""


@dataclass(frozen=True)
class Session:
    """What was said so far; a talker's side has its number."""

    sides: tuple[Side, ...]

    @classmethod
    def of(cls, talkers: Sequence[Talker]) -> "Session":
        """One in which nothing was said."""
        return cls(tuple(Side() for _ in talkers))

    def ask(
        self, talkers: Sequence[Talker], text: str, images: Sequence[ImageRef], sampling: Sampling
    ) -> Iterator["Session"]:
        """The session as answers grow; one model answers after the other, so that each says what it says alone.

        Where a reader stops, what was said until then remains said, and a question that has no answer is dropped by the
        next one.

        Raises:
            DataError: there is no question, its marks and pictures differ, or it is too long.
            ImageError: a picture cannot be read.
        """
        asked = tuple(side.said.ask(text, images) for side in self.sides)
        for talker, conversation in zip(talkers, asked, strict=True):
            talker.check(conversation, sampling)  # of all models, before any answers
        session = Session(tuple(Side(conversation) for conversation in asked))
        yield session
        for number, (talker, conversation) in enumerate(zip(talkers, asked, strict=True)):
            said = Said("", ())
            for said in talker.answer(conversation, sampling):
                if said.text:
                    session = session._with(number, Side(conversation.answer(said.text)))
                    yield session
            looks = look(talker, conversation, said)
            session = session._with(number, Side(conversation.answer(said.text), looks))
            yield session

    def _with(self, number: int, side: Side) -> "Session":
        return Session((*self.sides[:number], side, *self.sides[number + 1 :]))
