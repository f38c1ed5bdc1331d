"""Checks of a whole small model that has the part in it: packing, gradients, saving, several processes."""

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from beni.config import RunOptions
from beni.data.batch import pack
from beni.data.document import Document
from beni.errors import ConfigError, IncompatiblePartsError
from beni.flops.account import FlopMeter
from beni.model.build import Built
from beni.sample import Sample
from beni.testing.flops import both_passes
from beni.testing.sharded import Compared, compare
from beni.testing.small import CONVERSATIONS, B, C, D, inputs, make, noise, talk
from beni.testing.suite import Conformance, require
from beni.training.recompute import checkpoint_activations

TOLERANCE = 1e-4
"""Relative to the largest value, in fp32; what leaks differs by far more."""
FLOPS = 0.01
"""Relative error of a count."""
ROW = {"row_tokens": 1 << 20}
"""Whatever an image costs, it fits."""
Trees = Sequence[Sequence[Document]]


class ModelConformance(Conformance):
    """Checks of everything that is in a model; suites of the kinds add their own."""

    surroundings: ClassVar[dict[str, Any]] = {}
    """Tables of other parts to put around this one, as in config.json: `{"connector": {"name": "perceiver"}}`."""

    @classmethod
    def neighbours(cls) -> dict[str, Any]:
        """Tables of the parts around this one, where it cannot do with the defaults."""
        return {}

    @classmethod
    def tables(cls) -> dict[str, Any]:
        """The small model that has the part in it."""
        table = cls.chosen().to_dict()
        own = {"encoders": {"main": table}} if cls.kind == "encoder" else {cls.kind: table}
        return {"batch": ROW, **cls.neighbours(), **cls.surroundings, **own}

    @classmethod
    def refusal(cls) -> str:
        try:
            _built(cls)  # type: ignore[arg-type]
        except (ConfigError, IncompatiblePartsError) as error:
            return str(error)
        except Exception:  # noqa: BLE001  # whatever else a part raises is for its checks to tell
            return ""
        return ""

    @classmethod
    def module(cls, built: Built) -> nn.Module | None:
        """The part in a model; None for a part that is no module."""
        if cls.kind == "encoder":
            return built.model.encoders["main"]
        return getattr(built.model, cls.kind, None)

    def built(self) -> Built:
        """The small model, with open gates; shared by checks that leave it as they found it."""
        built = _built(type(self))  # type: ignore[arg-type]
        built.model.requires_grad_(True).eval().zero_grad()
        return built

    def test_parameters_can_be_sharded(self) -> None:
        module = self.module(self.built())
        if module is None:
            return
        scalars = [name for name, parameter in module.named_parameters() if not parameter.ndim]
        require(not scalars, f"FSDP shards no numbers: give {', '.join(scalars)} one dimension, as in torch.zeros(1)")
        blocks = list(getattr(module, "blocks", tuple)())
        require(len({id(block) for block in blocks}) == len(blocks), "`blocks()` names a module twice")
        own = {id(child) for child in module.modules()}
        require(
            self.kind == "fusion" or all(id(block) in own for block in blocks),
            "`blocks()` names a module that is no child of the part",
        )

    def test_gradients_reach_what_is_trained_and_nothing_else(self) -> None:
        built = make(**self.tables())
        module = self.module(built)
        everything = list(built.model.named_parameters())
        own = set() if module is None else {id(parameter) for parameter in module.parameters()}
        whole = {id(parameter) for _, parameter in everything}
        cases = [(whole, "everything is trained")]
        if own:
            cases += [(own, "the part alone is trained"), (whole - own, "the part is frozen")]
        for trained, what in cases:
            built.model.zero_grad()
            for _, parameter in everything:
                parameter.requires_grad_(id(parameter) in trained)
            built.model(packed=self._pack(built, [[doc] for doc in self._documents(built)])).loss.backward()
            for name, parameter in everything:
                if id(parameter) in trained:
                    require(
                        parameter.grad is not None,
                        f"{name} gets no gradient where {what}: use it in every forward pass, or give it zeros "
                        f"(beni.nn.unused)",
                    )
                else:
                    require(parameter.grad is None, f"{name} gets a gradient where {what}, which it is not")

    def test_recomputed_activations_change_nothing(self) -> None:
        """Gradients where blocks run a second time in the backward pass."""
        kept, recomputed = make(**self.tables()), make(**self.tables())
        checkpoint_activations(recomputed.model, RunOptions(activation_checkpointing="full"))
        found = []
        for built in (kept, recomputed):
            built.model.requires_grad_(True).eval()
            self._target_logits(built, [[doc] for doc in self._documents(built)])
            found.append(self._gradients(built))
        require(found[0].keys() == found[1].keys(), "recomputing activations changes which parameters get a gradient")
        for name, gradient in found[0].items():
            require(
                torch.equal(gradient, found[1][name]),
                f"the gradient of {name} is another where blocks are computed twice: let the forward pass of a block "
                f"depend on its arguments alone, and keep nothing between calls",
            )

    def test_packed_equals_separate(self) -> None:
        """Logits and gradients, with 0, 1 and 3 images, and with questions that share an image."""
        built = self.built()
        documents = self._documents(built)
        what, many, colour, text, three, turns = documents
        require(
            bool(what.head) and what.head_key == many.head_key == colour.head_key,
            "three questions about one image do not share it: an image's text form and layout must depend on the image "
            "alone",
        )
        alone = [self._target_logits(built, [[doc]]) for doc in documents]
        loss, wanted = sum(each for each, _ in alone), self._gradients(built)
        scale = max((float(gradient.abs().max()) for gradient in wanted.values()), default=0.0) / 100
        packings: list[Trees] = [
            [[doc] for doc in documents],
            [[what, many, colour], [text], [three], [turns]],
            [[turns], [text], [many, what], [three], [colour]],
        ]
        for trees in packings:
            found, logits = self._target_logits(built, trees)
            order = [documents.index(doc) for tree in trees for doc in tree]
            _near(found, torch.as_tensor(loss), "the loss")
            _near(logits, torch.cat([alone[i][1] for i in order]), "the logits")
            gradients = self._gradients(built)
            require(gradients.keys() == wanted.keys(), "packing changes which parameters get a gradient")
            for name, gradient in gradients.items():
                _near(gradient, wanted[name], f"the gradient of {name}", scale)

    def test_images_of_other_documents_do_not_matter(self) -> None:
        built = self.built()
        first, text = self._documents(built, CONVERSATIONS[0], CONVERSATIONS[3])
        near, far = (
            self._documents(built, talk("x", (0, 1, "compare"), ("same",), images=pair))[0]
            for pair in ((B, C), (D, noise(9)))
        )
        count = int((first.labels >= 0).sum() + (text.labels >= 0).sum())
        one = self._target_logits(built, [[first], [text], [near]])[1]
        other = self._target_logits(built, [[first], [text], [far]])[1]
        _near(other[:count], one[:count], "what is said of an image, when another document's image changes,")
        require(
            bool((one[count:] - other[count:]).abs().max() > 1e-6 * one.abs().max()),
            "other images give the same answers: what the part computes does not reach the text",
        )

    def test_a_row_without_images_sends_zero_gradients(self) -> None:
        built = self.built()
        self._target_logits(built, [self._documents(built, CONVERSATIONS[3])])
        for name, parameter in built.model.named_parameters():
            require(
                parameter.grad is not None,
                f"{name} gets no gradient from a row without images: other processes would wait for it for ever; use "
                f"it in every forward pass",
            )
            if name.startswith(("encoders.", "connector.")):
                require(
                    not torch.count_nonzero(parameter.grad),
                    f"{name} gets a gradient from a row without images: its only image is a blank one that no text may "
                    f"see",
                )

    def test_its_flops_are_those_of_its_passes(self) -> None:
        """What is counted without running a row is what PyTorch counts of both passes; operations of the part's own
        need a formula (`torch.utils.flop_counter.register_flop_formula`), also for their backward pass."""
        built = self.built()
        one, three = self._documents(built, CONVERSATIONS[0], CONVERSATIONS[4])
        counted = FlopMeter(built.model).row(self._pack(built, [[one], [three]]))
        whole = both_passes(built.model, [self._pack(built, [[document]]) for document in (one, three)])
        model = sum(flops.model for flops in counted.full.values())
        require(
            abs(model - whole) <= FLOPS * whole,
            f"{model:,.0f} FLOPs are counted where both passes compute {whole:,}: let the cost of an image depend on "
            f"its layout alone, and give every operation of your own a formula",
        )

    def test_a_saved_model_reloads(self) -> None:
        """Modules are built on the meta device and filled from the file: whatever is in neither is lost."""
        built = self.built()
        with tempfile.TemporaryDirectory() as folder:
            built.model.save_pretrained(folder)
            again: Any = AutoModelForImageTextToText.from_pretrained(folder)
        for kind, saved in (
            ("parameter", dict(built.model.named_parameters())),
            ("buffer", dict(built.model.named_buffers())),
        ):
            loaded = dict(getattr(again, f"named_{kind}s")())
            require(saved.keys() == loaded.keys(), f"a reloaded model has other {kind}s")
            for name, value in saved.items():
                require(
                    torch.equal(value, loaded[name]),
                    f"{kind} {name} is another after a reload: keep it in the state dict, or make it again in "
                    f"`init_non_persistent_buffers`",
                )
        batch = inputs(built, CONVERSATIONS)
        with torch.no_grad():
            _near(again(**batch).logits, built.model(**batch).logits, "what a reloaded model says")

    def test_two_processes_equal_one(self) -> None:
        """One of them without an image."""
        result = self._compared()
        _near(result.loss, result.loss_of_one, "the loss of two processes")
        scale = max((float(gradient.abs().max()) for gradient in result.gradients_of_one.values()), default=0.0) / 100
        for name, gradient in result.gradients_of_one.items():
            _near(result.gradients[name], gradient, f"the gradient of {name} in two processes", scale)

    def test_a_checkpoint_of_two_processes_reloads(self) -> None:
        """Written by two processes, read into a model that started from another seed."""
        result = self._compared()
        changed = [name for name, value in result.saved.items() if not torch.equal(value, result.loaded[name])]
        require(not changed, f"{', '.join(changed[:3])} of a checkpoint of two processes came back as something else")

    test_two_processes_equal_one.spawns = test_a_checkpoint_of_two_processes_reloads.spawns = True  # type: ignore[attr-defined]

    def _compared(self) -> Compared:
        """Two processes and one; only for a part that does not let them wait for each other."""
        self.test_a_row_without_images_sends_zero_gradients()
        return _compare(type(self))  # type: ignore[arg-type]

    def _documents(self, built: Built, *samples: Sample) -> list[Document]:
        return [built.composer.compose(sample) for sample in samples or CONVERSATIONS]

    def _pack(self, built: Built, trees: Trees) -> Any:
        return pack(trees, built.composer)

    def _target_logits(self, built: Built, trees: Trees) -> tuple[Tensor, Tensor]:
        """(loss, logits where there are targets) of a row; gradients are added to the model's."""
        seen: list[Tensor] = []
        handle = built.model.llm.register_forward_hook(lambda module, args, out: seen.append(out.logits[0]))
        try:
            loss = built.model(packed=self._pack(built, trees)).loss
        finally:
            handle.remove()
        loss.backward()
        return loss.detach(), seen[0].detach()

    def _gradients(self, built: Built) -> dict[str, Tensor]:
        found = {name: p.grad.clone() for name, p in built.model.named_parameters() if p.grad is not None}
        built.model.zero_grad()
        return found


@lru_cache(maxsize=2)
def _built(suite: type[ModelConformance]) -> Built:
    return make(**suite.tables())


@lru_cache(maxsize=2)
def _compare(suite: type[ModelConformance]) -> Compared:
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), suite.tables())


def _near(found: Tensor, expected: Tensor, what: str, scale: float = 0.0) -> None:
    """`scale`: below this, values are rounding errors of sums of larger ones."""
    require(found.shape == expected.shape, f"{what} has shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    require(bool(found.isfinite().all()), f"{what} is not finite")
    error = float((found - expected).abs().max() / max(float(expected.abs().max()), scale, 1e-30))
    require(
        error < TOLERANCE,
        f"{what} differs by {error:.1e} of its largest value, which may be {TOLERANCE:g}: the part must treat every "
        f"image by itself, whatever else is in the batch",
    )
