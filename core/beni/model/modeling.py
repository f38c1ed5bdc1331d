"""The model: encoders, connector, fusion and a causal LM, as one Hugging Face class.

Two ways in, one way through. Training calls `model(packed=batch)` with one packed row and gets a summed loss; everybody
else calls `model(input_ids, …)` or `model.generate(…)` with padded rows, as with any Hugging Face model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast, ModelOutput

from beni.data.batch import PackedBatch, Placement, VisualInput
from beni.errors import DataError
from beni.interfaces import (
    Connector,
    ConnectorConfig,
    Fusion,
    FusionConfig,
    FusionContext,
    LLMSpec,
    VisionEncoder,
    VisualSpec,
    load,
)
from beni.model.config import BeniConfig
from beni.model.llm import NewTokens, attach, decoder_layers, relink, use_packed_attention
from beni.model.loss import summed_cross_entropy
from beni.model.placement import layouts_of, place_padded
from beni.nn.norms import hold_batch_norms
from beni.nn.plan import plan_cross
from beni.types import EncoderSpec, Features, VisualTokens, Windows

CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
"""What transformers calls a language model's cache; the former since 5.24."""
Pixels = Tensor | Mapping[str, Tensor]
"""Crops of images, for one encoder or by the keys of several."""
DISTINCT = ("pixel_values", "image_features", "image_sizes", "image_ids")
"""Inputs about the distinct images of a batch, however many rows show them."""
PICTURES = (*DISTINCT, "image_starts")
"""Inputs about images."""


@dataclass
class BeniOutput(ModelOutput):
    """What a forward pass returns.

    `loss` is the summed, weighted cross-entropy of a packed row, or the mean over labels of padded rows. `logits` of a
    packed row stand where there are targets, and only where no gradient is wanted: they are large. `fusion_context` is
    what the next decoding step needs of the images.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: Any = None
    fusion_context: Any = None

    @property
    def past_key_values(self) -> Any:
        """What transformers before 5.24 calls the cache."""
        return self.cache


class BeniForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Any vision encoders × any connector × any fusion × any causal LM.

    Args:
        config: says which; see `BeniConfig`. Parts that are not installed raise `PluginError`.
        llm: the language model, if it is loaded already; by default it is built from the config with random weights.
    """

    config_class = BeniConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _supports_sdpa = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = False

    def __init__(self, config: BeniConfig, llm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        specs = config.encoder_specs()
        self.encoders = nn.ModuleDict(
            {key: load("encoder", p)(p.config, specs[key]) for key, p in config.encoder_parts().items()}
        )
        hold_batch_norms(self.encoders)
        self.llm: PreTrainedModel = llm or AutoModelForCausalLM.from_config(config.text_config)
        use_packed_attention(self.llm)
        embedding = self.llm.get_input_embeddings()
        sizes = LLMSpec(embedding.weight.shape[1], len(decoder_layers(self.llm)))
        connector, fusion = config.part("connector"), config.part("fusion")
        visual = visual_spec(connector.config, fusion.config, specs, sizes)  # type: ignore[arg-type]
        seen = {key: spec.level() for key, spec in specs.items()} if visual.levels else specs

        def connect() -> Connector:
            return load("connector", connector)(connector.config, seen, visual.width)

        self.connector = connect()
        self.level_connectors = nn.ModuleList(connect() for _ in range(visual.levels))
        self.fusion: Fusion = load("fusion", fusion)(fusion.config, sizes, visual)
        self.new_tokens = NewTokens(config.new_token_ids, config.predicted_tokens, sizes.width)
        self._inserted_into = attach(self.llm, self.fusion.inserts())
        self.llm.get_output_embeddings().register_forward_hook(self.new_tokens.extend_logits)
        self.generation_config = GenerationConfig(
            eos_token_id=config.stop_token_ids or None,
            pad_token_id=(config.stop_token_ids or [0])[0],
            suppress_tokens=[config.image_token_id, *config.new_token_ids[config.predicted_tokens :]],  # not words
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Parts initialise themselves; only buffers that no checkpoint holds are made again after a meta build."""
        again = getattr(module, "init_non_persistent_buffers", None)  # timm's name for it
        if callable(again):
            again()

    def train(self, mode: bool = True) -> "BeniForConditionalGeneration":
        """Frozen parts stay in evaluation mode: no dropout in what is not trained."""
        super().train(mode)
        for part in (*self.encoders.values(), *self.connectors(), self.fusion, self.llm):
            if mode and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Pixels | Sequence[Pixels] | None = None,
        image_features: Mapping[str, Features] | None = None,
        image_sizes: Tensor | None = None,
        image_ids: Tensor | None = None,
        image_starts: Tensor | None = None,
        fusion_context: FusionContext | None = None,
        packed: PackedBatch | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Any = None,
        **kwargs: Any,
    ) -> BeniOutput:
        """Compute logits, and a loss where there are labels.

        Args:
            input_ids: [B, T] tokens, `image_token_id` where visual tokens go; padded on the left for generation.
            attention_mask: [B, T] 0 on padding.
            position_ids, past_key_values, inputs_embeds, use_cache, logits_to_keep: as in any causal LM; `cache` is
                what transformers 5.24 passes for past_key_values.
            labels: [B, T] aligned with `input_ids`, -100 where there is none.
            pixel_values: [C, 3, h, w] crops of the batch's distinct images (several encoders: a dict by key); or
                several of these, one behind the other.
            image_features: by encoder key, what the encoders make of those crops, in place of `pixel_values`.
            image_sizes: [U, 2] width and height of the distinct images.
            image_ids: [U] a name of each, a number.
            image_starts: [B, S] the name of the image whose text form starts there, 0 elsewhere; S <= T.
            fusion_context: of the previous decoding step.
            packed: one packed row instead of all of the above (training).

        Raises:
            PluginError: a connector returned another number of tokens than it declared.
            DataError: images without their sizes and places, or more or fewer places than visual tokens; features that
                are not the encoders', or beside pixels.
        """
        if self._inserted_into:
            relink(self._inserted_into, self.fusion.inserts())
        if packed is not None:
            logits_KV = self.packed_logits(packed, self.see(packed.visual))
            return BeniOutput(self.packed_loss(logits_KV, packed), None if torch.is_grad_enabled() else logits_KV)
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.new_tokens.embed(input_ids, self.get_input_embeddings())
        if pixel_values is not None or image_features is not None:
            if input_ids is None or image_sizes is None or image_ids is None or image_starts is None:
                raise DataError(
                    "images need input_ids, image_sizes, image_ids and image_starts beside them: the processor "
                    "of the model's folder makes all of them"
                )
            layouts = layouts_of(image_sizes, self.config)
            visual = self.see(
                VisualInput(self._pixels(pixel_values), layouts, self._features(image_features, pixel_values))
            )
            placement = place_padded(
                input_ids, image_ids, image_starts, visual, self.config.image_token_id, self.fusion.config.reads
            ).to(inputs_embeds.device)
            inputs_embeds = self._fuse(inputs_embeds.flatten(0, 1), visual, placement).view_as(inputs_embeds)
            fusion_context = self._context(visual, placement)
        elif fusion_context is not None:
            fusion_context = fusion_context.step(inputs_embeds.shape[1])
        elif self.fusion.config.uses_context:
            fusion_context = self._empty_context(inputs_embeds)
        cached = {"cache": cache, "past_key_values": past_key_values}
        cached = {name: given for name, given in cached.items() if given is not None}
        if position_ids is None and attention_mask is not None and not cached:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        extra = {} if fusion_context is None else {"fusion": fusion_context}
        out = self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **cached,
            **extra,
            **kwargs,
        )
        loss = None
        if labels is not None:
            targets = labels[:, 1:].flatten()
            keep = targets != -100
            loss = summed_cross_entropy(out.logits[:, :-1].flatten(0, 1)[keep], targets[keep]) / keep.sum().clamp(min=1)
        return BeniOutput(loss, out.logits, getattr(out, CACHE, None), fusion_context)

    def see(self, visual: VisualInput) -> VisualTokens:
        """Encode and connect the distinct images of a batch; what has been encoded before is only connected."""
        features = visual.features or {key: self._encoder(key)(visual.pixels[key]) for key in self.encoders}
        if not self.level_connectors:
            return self.connector(features, visual.layouts)
        split = {key: each.split(len(self.connectors())) for key, each in features.items()}
        *levels, last = (
            connector({key: each[level] for key, each in split.items()}, visual.layouts)
            for level, connector in enumerate([*self.level_connectors, self.connector])
        )
        return replace(last, levels=tuple(level.tokens_VD for level in levels))

    def connectors(self) -> list[nn.Module]:
        """The connector, and those of the encoders' earlier layers, if the fusion wants these by themselves.

        PEFT may have wrapped them.
        """
        return [self.connector, *self.level_connectors]

    def _features(
        self, given: Mapping[str, Features] | None, pixels: "Pixels | Sequence[Pixels] | None"
    ) -> Mapping[str, Features]:
        """What the encoders made of the images before, if that is what is given."""
        if given is None:
            return {}
        if pixels is not None:
            raise DataError("pixel_values and image_features are the same images twice: give one of them")
        if given.keys() != self.encoders.keys():
            raise DataError(
                f"image_features are of the encoders {', '.join(given) or 'none'}, and the model has "
                f"{', '.join(self.encoders)}"
            )
        return given

    def _pixels(self, given: "Pixels | Sequence[Pixels] | None") -> dict[str, Tensor]:
        """Crops by encoder, however they come."""
        if given is None:
            return {}
        several = [given] if isinstance(given, (Tensor, Mapping)) else given
        named = [each if isinstance(each, Mapping) else {next(iter(self.encoders)): each} for each in several]
        return {key: torch.cat([each[key] for each in named]) if len(named) > 1 else named[0][key] for key in named[0]}

    def _encoder(self, key: str) -> VisionEncoder:
        return self.encoders[key]  # type: ignore[return-value]

    def _fuse(self, embeds_TD: Tensor, visual: VisualTokens, placement: Placement) -> Tensor:
        return self.fusion.embed(embeds_TD, visual.tokens_VD[placement.source_V], placement.at_V)

    def _context(self, visual: VisualTokens, placement: Placement) -> FusionContext | None:
        """What inserted blocks see of a batch, if there are any."""
        if not self.fusion.config.uses_context:
            return None
        memory_MD = visual.tokens_VD if placement.memory_M is None else visual.tokens_VD[placement.memory_M]
        windows = None if visual.windows is None else visual.windows.at(placement.source_V)
        levels = tuple(level_VD[placement.source_V] for level_VD in visual.levels)
        return FusionContext(memory_MD, placement.cross, placement.at_V, windows, levels)

    def _empty_context(self, embeds_BTD: Tensor) -> FusionContext:
        """What text without any image sees: the blocks of a deep fusion run, and read nothing."""
        rows, length, _ = embeds_BTD.shape
        plan = plan_cross(
            [(row * length, (row + 1) * length) for row in range(rows)], np.zeros((rows * length, 2), int)
        )
        spec = self.fusion.visual
        none_V = torch.empty(0, dtype=torch.long, device=embeds_BTD.device)
        windows = spec.windows and Windows(
            keys=tuple(embeds_BTD.new_zeros(0, size, spec.windows.width) for size in spec.windows.sizes),
            visible=tuple(none_V.new_zeros(0, size, dtype=torch.bool) for size in spec.windows.sizes),
            context_VC=embeds_BTD.new_zeros(0, spec.windows.width),
        )
        memory_MD = embeds_BTD.new_zeros(1, spec.width)
        return FusionContext(memory_MD, plan.to(embeds_BTD.device), none_V, windows, (memory_MD[:0],) * spec.levels)

    def packed_logits(self, batch: PackedBatch, visual: VisualTokens) -> Tensor:
        """[K, vocab] logits of a packed row, whose images have been seen, where there is a target."""
        embeds_TD = self.new_tokens.embed(batch.ids_T, self.get_input_embeddings())
        embeds_TD = self._fuse(embeds_TD, visual, batch.placement)
        context = self._context(visual, batch.placement)
        extra = {} if context is None else {"fusion": context}
        # a 4-D mask passes through transformers untouched; the attention function reads `segments` instead
        untouched = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeds_TD.device)
        out = self.llm(
            inputs_embeds=embeds_TD[None].clone(),  # of a view, the first compiled layer would need graphs of its own
            attention_mask=untouched,
            position_ids=batch.plan.positions_T[None],
            use_cache=False,
            segments=batch.plan,
            logits_to_keep=batch.keep_K,
            **extra,
        )
        return out.logits[0]

    def packed_loss(self, logits_KV: Tensor, batch: PackedBatch) -> Tensor:
        """Summed (and weighted) cross-entropy of a packed row."""
        return summed_cross_entropy(logits_KV, batch.targets_K, batch.weights_K)

    # ------------------------------------------------------------------------------------------------- generation

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Images go in with the prompt; later steps carry the fusion context instead.

        Raises:
            DataError: generation is to begin behind a cache that does not hold what this model needs of its images.
        """
        for name in ("tokenizer", "assistant_tokenizer"):  # transformers hands on what only its stopping criteria need
            kwargs.pop(name, None)
        if kwargs.get("is_first_iteration", False):
            kwargs.pop("fusion_context", None)
            before = kwargs.get("cache", kwargs.get("past_key_values"))
            seen = 0 if before is None else int(before.get_seq_length())
            if seen and (any(kwargs.get(name) is not None for name in PICTURES) or self.fusion.config.uses_context):
                raise DataError(
                    f"the cache that generate was given holds {seen} tokens, and nothing of their images: give the "
                    f"whole conversation with its images and without a cache"
                )
        elif kwargs.get("use_cache", True):
            for name in PICTURES:
                kwargs.pop(name, None)
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        model_kwargs["fusion_context"] = outputs.get("fusion_context")
        return model_kwargs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Beams repeat rows; the distinct images stay, rows point at them."""
        images = {name: kwargs.pop(name) for name in DISTINCT if name in kwargs}
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | images


def visual_spec(
    connector: ConnectorConfig, fusion: FusionConfig, encoders: Mapping[str, EncoderSpec], llm: LLMSpec
) -> VisualSpec:
    """What the connector of a model makes for its fusion."""
    levels = min(spec.levels for spec in encoders.values()) if fusion.needs_levels else 1
    width = fusion.visual_width(llm, sum(spec.width for spec in encoders.values()) // levels)
    return VisualSpec(width, connector.windows(encoders), levels - 1)


AutoConfig.register(BeniConfig.model_type, BeniConfig)
AutoModel.register(BeniConfig, BeniForConditionalGeneration)
AutoModelForImageTextToText.register(BeniConfig, BeniForConditionalGeneration)
AutoModelForMultimodalLM.register(BeniConfig, BeniForConditionalGeneration)
