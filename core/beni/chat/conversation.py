"""What was said so far, as a sample: the prompt of every turn has the tokens that training would have made of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from beni.errors import DataError, counted
from beni.sample import IMAGE_MARK, ImageRef, Sample, Turn, split_marks


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of the user and of a model, and the pictures in them. Saying something makes another conversation."""

    turns: tuple[Turn, ...] = ()
    images: tuple[ImageRef, ...] = ()

    @property
    def waits(self) -> bool:
        """Whether the last question has no answer yet."""
        return bool(self.turns) and self.turns[-1].role == "user"

    def ask(self, text: str, images: Sequence[ImageRef] = ()) -> "Conversation":
        """The conversation with a question behind it, instead of the last one if that was never answered.

        Args:
            text: the question; `<image>` marks say where its pictures go, by default in front.
            images: shown with this question; earlier ones stay where they were.

        Raises:
            DataError: nothing is asked, or marks and pictures differ in number.
        """
        if self.waits:
            return self._unasked().ask(text, images)
        if not text.strip() and not images:
            raise DataError("there is no question: write one, or show a picture")
        marks = text.count(IMAGE_MARK)
        if not marks and images:
            text, marks = IMAGE_MARK * len(images) + "\n" + text, len(images)
        if marks != len(images):
            raise DataError(
                f"the question has {counted(marks, f'{IMAGE_MARK} mark')} but {counted(len(images), 'picture')}: "
                f"write a mark for each picture, or none"
            )
        asked = Turn("user", split_marks(text, first_image=len(self.images)))
        return Conversation((*self.turns, asked), (*self.images, *images))

    def answer(self, text: str) -> "Conversation":
        """The conversation with an answer to its last question."""
        assert self.waits, "nothing was asked"
        return replace(self, turns=(*self.turns, Turn("assistant", (text.strip(),))))

    def sample(self) -> Sample:
        """What `Composer.compose(…, prompt_only=True)` makes the prompt of."""
        assert self.waits, "nothing was asked"
        return Sample("prompt", (*self.turns, Turn("assistant", ("",))), self.images)

    def _unasked(self) -> "Conversation":
        """Without the last turn and its pictures."""
        shown = sum(isinstance(part, int) for part in self.turns[-1].content)
        return Conversation(self.turns[:-1], self.images[: len(self.images) - shown])
