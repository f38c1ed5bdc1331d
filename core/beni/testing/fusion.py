"""Checks of fusions: what they write into the text, and that a fresh one leaves its language model as it was."""

from contextlib import suppress
from typing import Any, ClassVar
from unittest import SkipTest

import torch
from torch import Tensor

from beni.config import choose
from beni.errors import IncompatiblePartsError
from beni.interfaces import FusionConfig, LLMSpec
from beni.model.build import Built, check_pair, describe
from beni.registry import available
from beni.sample import Sample
from beni.testing.model import ModelConformance
from beni.testing.small import CONVERSATIONS, ENCODER, SEVERAL_LAYERS, E, closed_gates, configure, inputs, make
from beni.testing.suite import require


class FusionConformance(ModelConformance):
    """Subclass it and name your fusion: `part = "mine"`."""

    kind: ClassVar[str] = "fusion"

    @classmethod
    def neighbours(cls) -> dict[str, Any]:
        """A connector and an encoder that have what the fusion reads; the default ones where they do."""
        fusion = cls.chosen()
        main = ENCODER | (SEVERAL_LAYERS if fusion.config.needs_levels else {})  # type: ignore[attr-defined]
        encoders = describe(configure(encoders={"main": main}).encoders)
        for plugin in (None, *available("connector")):
            connector = configure().connector if plugin is None else choose("connector", plugin.reference)
            with suppress(IncompatiblePartsError):
                check_pair(connector, fusion, encoders)
                return {"connector": connector.to_dict(), "encoders": {"main": main}}
        raise AssertionError("no installed connector keeps what the fusion reads")

    def test_an_image_takes_all_of_its_tokens_or_no_place(self) -> None:
        config = self._config()
        composer = self.built().composer
        for sample in CONVERSATIONS:
            for image in composer.compose(sample).images:
                shapes = composer.connector.shapes(image.layout, composer.encoders)
                spelled = config.spell(image.layout, shapes)
                places = sum(part for part in spelled if isinstance(part, int))
                require(
                    places in (0, sum(image.counts)),
                    f"`spell` gives an image of {sum(image.counts)} tokens {places} places: all of its tokens take "
                    f"places in the text, or none of them",
                )
                require(bool(spelled), "`spell` gives an image no form: text behind it must be told from text before")
                words = [part for part in spelled if isinstance(part, str)]
                unknown = [
                    word
                    for word in words
                    if not composer.template.tokenizer(word, add_special_tokens=False)["input_ids"]
                ]
                require(not unknown, f"`spell` writes {unknown}, which are no tokens: name them in `new_tokens`")

    def test_the_visual_width_is_a_width(self) -> None:
        for llm in (LLMSpec(32, 3), LLMSpec(48, 1)):
            width = self._config().visual_width(llm, 16)
            require(isinstance(width, int) and width > 0, f"`visual_width` is {width!r}: not a number of channels")

    def test_inserted_blocks_are_used_and_owned(self) -> None:
        built = self.built()
        fusion: Any = built.model.fusion
        inserts = fusion.inserts()
        require(
            not inserts or self._config().uses_context,
            "the fusion inserts blocks, which run only with a context: let its Config say what they read (`reads` "
            "images, or `needs_windows`)",
        )
        own = {id(module) for module in fusion.modules()}
        strangers = [index for index, insert in inserts.items() if id(insert.block) not in own]
        require(
            not strangers, f"the blocks at layers {strangers} are no children of the fusion: nobody would save them"
        )

    def test_a_fresh_fusion_leaves_text_alone(self) -> None:
        built = self._fresh()
        fused, plain = self._with_and_without(built, CONVERSATIONS[3])
        require(
            torch.allclose(fused, plain, rtol=1e-5, atol=1e-5),
            "a fresh fusion changes what the language model says of text without images: start its gates, or the last "
            "layers of its blocks, at zero",
        )

    def test_a_fresh_gated_fusion_leaves_its_language_model_alone(self) -> None:
        built = self._fresh()
        if not closed_gates(built.model.fusion):
            raise SkipTest("it has no parameters named gate that start at zero")
        for sample in CONVERSATIONS:
            fused, plain = self._with_and_without(built, sample)
            require(
                torch.allclose(fused, plain, rtol=1e-5, atol=1e-5),
                "with closed gates the language model says something else about images: let all that a block adds go "
                "through its gates",
            )

    def test_images_reach_the_text(self) -> None:
        """Behind an image; in front of it nothing is known of it."""
        built = self.built()
        batch = inputs(built, (CONVERSATIONS[5],))
        begin = int(batch["image_starts"][0].nonzero()[1])  # of the second image
        crops = len(built.composer.layout(E).crops["main"])
        changed = dict(batch, pixel_values=batch["pixel_values"].clone())
        changed["pixel_values"][-crops:] += 1.0
        with torch.no_grad():
            one, other = built.model(**batch).logits[0], built.model(**changed).logits[0]
        require(
            torch.allclose(one[:begin], other[:begin], rtol=1e-4, atol=1e-5),
            "text in front of an image depends on it",
        )
        require(
            bool((one[-1] - other[-1]).abs().max() > 1e-6 * one.abs().max()),
            "text behind an image does not depend on it: the fusion's blocks or `embed` do not use what they get",
        )

    def _config(self) -> FusionConfig:
        config = self.chosen().config
        require(
            isinstance(config, FusionConfig),
            f"{type(config).__name__} must derive from beni.interfaces.FusionConfig",
        )
        return config  # type: ignore[return-value]

    def _fresh(self) -> Built:
        built = make(gates=0.0, **self.tables())
        built.model.eval()
        return built

    def _with_and_without(self, built: Built, sample: Sample) -> tuple[Tensor, Tensor]:
        """Logits with the fusion's blocks, and those of the language model by itself on the same embeddings."""
        given: dict[str, Any] = {}
        handle = built.model.llm.register_forward_pre_hook(
            lambda module, args, kwargs: given.update(kwargs), with_kwargs=True
        )
        try:
            with torch.no_grad():
                fused = built.model(**inputs(built, (sample,))).logits
        finally:
            handle.remove()
        given.pop("fusion", None)
        with torch.no_grad():
            return fused, built.model.llm(**given).logits
