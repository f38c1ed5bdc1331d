"""From a run's configuration to a model with its weights, and to everything that must agree with it."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from beni.config import Part, RunConfig
from beni.data.document import Composer
from beni.data.template import Template, template_source
from beni.errors import ConfigError, IncompatiblePartsError, PluginError
from beni.interfaces import ConnectorConfig, LanguageModel, LLMSpec, Provenance, View, load
from beni.model.config import BeniConfig, spec_to_dict
from beni.model.llm import decoder_layers
from beni.model.modeling import BeniForConditionalGeneration, visual_spec
from beni.model.start import saved_tokenizer, start_from
from beni.registry import available
from beni.sample import VISUAL_MARK
from beni.types import EncoderSpec

END = "<|end|>"
"""Added to tokenizers that have no EOS, so that an answer can end."""


@dataclass(frozen=True, slots=True)
class Built:
    """A model, and what data workers and processors need to feed it."""

    model: BeniForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    composer: Composer
    loaded: Mapping[str, Provenance]
    """Parts whose weights were loaded rather than drawn, and where from: encoder.KEY, connector, fusion, llm."""


def build(config: RunConfig, texts: Iterable[str] = ()) -> Built:
    """Build the model a configuration describes: check the parts against each other, allocate, load weights.

    Args:
        config: the run.
        texts: the training texts, for an LLM that learns its vocabulary from them.

    Raises:
        IncompatiblePartsError, ConfigError: before anything is allocated where that can be told.
        PluginError: a part that is missing or broken.
    """
    specs = describe(config.encoders)
    view = view_of(config.view)
    load("connector", config.connector).check(config.connector.config, view, specs)  # type: ignore[attr-defined]
    check_pair(config.connector, config.fusion, specs)
    provider: LanguageModel = load("llm", config.llm)(config.llm.config)
    init = config.optim.init
    tokenizer = saved_tokenizer(init) if init else provider.tokenizer(texts)
    layout = view.bound(specs)
    shapes = config.connector.config.shapes(layout, specs)  # type: ignore[attr-defined]
    marks = config.fusion.config.marks(layout, shapes)  # type: ignore[attr-defined]
    new_ids, predicted, image_token = _add_tokens(tokenizer, marks)
    source = template_source(config.data.template, tokenizer)

    torch.manual_seed(config.run.seed)
    llm, origin = provider.build(tokenizer)
    check_fusion(config.fusion, config.connector, specs, llm)
    stops = _stop_ids(llm, tokenizer)
    template = Template(tokenizer, source, stops)
    tokenizer.chat_template = source
    model = BeniForConditionalGeneration(
        BeniConfig(
            text_config=llm.config,
            encoders={key: part.to_dict() for key, part in config.encoders.items()},
            encoder_order=list(config.encoders),
            specs={key: spec_to_dict(spec) for key, spec in specs.items()},
            connector=config.connector.to_dict(),
            fusion=config.fusion.to_dict(),
            view=config.view.to_dict(),
            template=source,
            image_token_id=image_token,
            new_token_ids=new_ids,
            predicted_tokens=predicted,
            stop_token_ids=sorted(template.stop_ids),
            tie_word_embeddings=llm.config.tie_word_embeddings,
        ),
        llm,
    )
    model.new_tokens.start_from(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    loaded = {"llm": origin} if origin else {}
    parts = [(f"encoder.{key}", encoder) for key, encoder in model.encoders.items()]
    for name, part in [*parts, *(("connector", each) for each in model.connectors()), ("fusion", model.fusion)]:
        if provenance := part.load_pretrained():  # type: ignore[operator]
            loaded[name] = provenance
    if init:
        loaded |= start_from(model, init)
    return Built(model, tokenizer, composer_of(model.config, tokenizer, config.batch.row_tokens), loaded)


def hollow(
    model: BeniConfig, tokenizer: PreTrainedTokenizerBase, loaded: Mapping[str, Provenance], max_tokens: int
) -> Built:
    """What another process has built, without memory for its weights: they are on the meta device.

    Args:
        model: configuration of the other process's model.
        tokenizer: the other process's.
        loaded: parts whose weights the other process has loaded.
        max_tokens: longest document.
    """
    with torch.device("meta"):
        empty = BeniForConditionalGeneration(model)
    return Built(empty, tokenizer, composer_of(model, tokenizer, max_tokens), loaded)


def composer_of(config: BeniConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int = 0) -> Composer:
    """What makes documents for a model; its weights are not needed.

    Args:
        config: of the model.
        tokenizer: of its language model, with the added tokens.
        max_tokens: longest document; 0: any.
    """
    return Composer(
        template=Template(tokenizer, config.template, config.stop_token_ids),
        view=view_of(config.part("view")),
        encoders=config.encoder_specs(),
        connector=config.part("connector").config,  # type: ignore[arg-type]
        fusion=config.part("fusion").config,  # type: ignore[arg-type]
        image_token=config.image_token_id,
        max_tokens=max_tokens,
    )


def describe(encoders: Mapping[str, Part]) -> dict[str, EncoderSpec]:
    """What each chosen encoder says of itself."""
    return {key: load("encoder", part).describe(part.config) for key, part in encoders.items()}  # type: ignore[attr-defined]


def view_of(part: Part) -> View:
    """The view of a part."""
    return load("view", part)(part.config)


def check_pair(connector: Part, fusion: Part, encoders: Mapping[str, EncoderSpec]) -> None:
    """Refuse a connector or encoders that lack what the fusion reads.

    Raises:
        IncompatiblePartsError: names connectors that have it, or the option that gives it.
    """
    if fusion.config.needs_levels:  # type: ignore[attr-defined]
        _check_levels(connector, fusion, encoders)
    needs, keeps = fusion.config.needs_windows, connector.config.windows(encoders)  # type: ignore[attr-defined]
    if needs and keeps is None:
        raise IncompatiblePartsError(
            f"fusion '{fusion.plugin.name}' reads the encoders' tokens under each visual token, which connector "
            f"'{connector.plugin.name}' does not keep: use {' or '.join(_keeping_windows()) or 'another fusion'}"
        )


def _check_levels(connector: Part, fusion: Part, encoders: Mapping[str, EncoderSpec]) -> None:
    levels = {key: spec.levels for key, spec in encoders.items()}
    if min(levels.values()) < 2 or len(set(levels.values())) > 1:
        shown = ", ".join(f"{key} {count}" for key, count in levels.items())
        raise IncompatiblePartsError(
            f"fusion '{fusion.plugin.name}' wants several layers of each encoder, of one width and equally many, these "
            f"give: {shown}; name them in the encoder's option for layers (--encoder.layers or --encoder.outputs), the "
            f"last of which gives the visual tokens"
        )
    if connector.config.selects:  # type: ignore[attr-defined]
        raise IncompatiblePartsError(
            f"fusion '{fusion.plugin.name}' connects each layer of an encoder by itself, and connector "
            f"'{connector.plugin.name}' with these options would select other places for each: choose another variant "
            f"or connector"
        )


def _keeping_windows() -> list[str]:
    """Installed connectors that keep windows, as one would choose them."""
    found = []
    for plugin in available("connector"):
        with suppress(PluginError):  # a broken package has nothing to offer
            if plugin.load().Config.windows is not ConnectorConfig.windows:  # type: ignore[attr-defined]
                found.append(f"--connector {plugin.name}")
    return found


def check_fusion(part: Part, connector: Part, encoders: Mapping[str, EncoderSpec], llm: PreTrainedModel) -> None:
    """Let a fusion refuse a language model, or what the connector makes."""
    width = llm.get_input_embeddings().weight.shape[1]
    if not isinstance(width, int):
        raise IncompatiblePartsError(f"{type(llm).__name__} has no input embeddings to put images among")
    sizes = LLMSpec(width, len(decoder_layers(llm)))
    visual = visual_spec(connector.config, part.config, encoders, sizes)  # type: ignore[arg-type]
    load("fusion", part).check(part.config, sizes, visual)  # type: ignore[attr-defined]


def _add_tokens(tokenizer: PreTrainedTokenizerBase, marks: Sequence[str]) -> tuple[list[int], int, int]:
    """Add the tokens the model needs: (ids with own embeddings, how many are predicted, id of visual positions).

    `marks` are those that the fusion writes, which nothing predicts.

    Raises:
        ConfigError: one of them means something else to the tokenizer.
    """
    for mark in marks:
        if _means_something(mark, tokenizer):
            raise ConfigError(
                f"the fusion writes '{mark}' around images, which means something else to the language model (a word, "
                f"a role, where texts begin or end): choose another (--fusion.before, --fusion.after)"
            )
    new: list[str] = []
    if tokenizer.eos_token_id is None or tokenizer.eos_token == END:  # of a saved model, to which it was added before
        tokenizer.add_special_tokens({"eos_token": END})
        new.append(END)
    predicted = len(new)
    new += marks
    tokenizer.add_special_tokens({"extra_special_tokens": [*marks, VISUAL_MARK]}, replace_extra_special_tokens=False)
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in new]
    return ids, predicted, int(tokenizer.convert_tokens_to_ids(VISUAL_MARK))


def _means_something(mark: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has a token already, and not only as one that is set aside, as `<img>` may be."""
    if mark not in tokenizer.get_vocab():
        return False
    turns = [{"role": role, "content": ""} for role in ("user", "assistant")]
    written = str(tokenizer.apply_chat_template(turns, tokenize=False)) if tokenizer.chat_template else ""
    return (
        mark in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
        or mark not in tokenizer.all_special_tokens
        or mark in written
    )


def _stop_ids(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's EOS and what the LLM was published with."""
    published = llm.generation_config.eos_token_id if llm.generation_config is not None else None
    published = [published] if isinstance(published, int) else list(published or [])
    return [int(tokenizer.eos_token_id), *published]
