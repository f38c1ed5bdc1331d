"""Parts that break one promise each."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from beni.config import PartConfig
from beni.errors import GridError
from beni.interfaces import FusionConfig, Reading, Source, Stream
from beni.sample import Sample, Turn
from beni.types import Box, Crop, EncoderSpec, Features, Grid, ImageLayout, Size, count_of
from beni_plugins.connectors.mlp import Mlp, MlpConfig
from beni_plugins.connectors.perceiver import Perceiver, PerceiverConfig
from beni_plugins.encoders.tiny import TinyEncoder
from beni_plugins.fusions.inline import Inline
from beni_plugins.fusions.xattn import CrossAttention
from beni_plugins.llms.tiny import TinyLlama
from beni_plugins.views.single import Single


class Short(Mlp):
    def project(self, features: Features) -> Tensor:
        return super().project(features)[:-1]


class Narrow(Mlp):
    def project(self, features: Features) -> Tensor:
        return super().project(features)[:, :-1]


class PerCrop(Mlp):
    def project(self, features: Features) -> Tensor:
        return super().project(features).unflatten(0, (len(features.grids), -1))


class Mismatched(Mlp):
    def project(self, features: Features) -> Tensor:
        return super().project(features) @ torch.ones(3, self.out_width)


class Mixing(Mlp):
    def project(self, features: Features) -> Tensor:
        out = super().project(features)
        return out - out.mean(0)


class Blind(Mlp):
    def project(self, features: Features) -> Tensor:
        return super().project(Features(features.tokens_ND * 0, features.grids))


class Detaching(Mlp):
    def project(self, features: Features) -> Tensor:
        return super().project(Features(features.tokens_ND.detach(), features.grids))


class SinglePrecision(Mlp):
    def project(self, features: Features) -> Tensor:
        return super().project(features) * torch.ones(1)


class Asking(Mlp):
    def project(self, features: Features) -> Tensor:
        tokens = super().project(features)
        return tokens if bool((tokens > 0).any()) else -tokens


@torch.library.custom_op("beni_tests::kernel", mutates_args=())
def kernel(x: Tensor) -> Tensor:
    """Nobody knows what it multiplies."""
    return x.clone()


kernel.register_fake(torch.empty_like)
kernel.register_autograd(lambda ctx, gradient: gradient)


class OwnKernel(Mlp):
    def project(self, features: Features) -> Tensor:
        return kernel(super().project(features))


class Crowded(Mlp):
    def project(self, features: Features) -> Tensor:
        tokens = super().project(features)
        likeness = tokens.repeat(8, 1) @ tokens.repeat(8, 1).T
        return tokens + 0 * (likeness @ likeness).sum()


class Leftover(Mlp):
    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.unused = nn.Parameter(torch.zeros(3))


class Number(Mlp):
    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def project(self, features: Features) -> Tensor:
        return super().project(features) * self.scale


class Forgetful(Mlp):
    shift: Tensor

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.register_buffer("shift", torch.randn(out_width), persistent=False)

    def project(self, features: Features) -> Tensor:
        return super().project(features) + self.shift


class SmallPerceiverConfig(PerceiverConfig):
    def __post_init__(self) -> None:
        for option, value in {"num_latents": 4, "depth": 1, "heads": 2, "head_width": 8}.items():
            object.__setattr__(self, option, value)


class Collapsed(Perceiver):
    Config = SmallPerceiverConfig

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        nn.init.ones_(self.resampler.latents)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class SilentConfig(MlpConfig):
    depth: int = 1


class Silent(Mlp):
    Config = SilentConfig


class MisleadingConfig(MlpConfig):
    def out_grid(self, grid: Grid) -> Grid:
        if grid.rows % 2:
            raise GridError("no", Grid(3, 3))
        return grid


class Misleading(Mlp):
    Config = MisleadingConfig


class Outside(Single):
    def crops(self, size: Size, spec: EncoderSpec) -> tuple[Crop, ...]:
        return (Crop(spec.size, Box(0, 0, size.width + 1, size.height), Box.of(spec.size)),)


class OffCanvas(Single):
    def crops(self, size: Size, spec: EncoderSpec) -> tuple[Crop, ...]:
        return (Crop(spec.size, Box.of(size), Box(0, 0, spec.size.width, size.height)),)


class Moody(Single):
    def crops(self, size: Size, spec: EncoderSpec) -> tuple[Crop, ...]:
        share = random.random()
        return (Crop(spec.size, Box(0, 0, share * size.width, size.height), Box.of(spec.size)),)


class Several(Single):
    """One crop per hundred pixels of width; says that it has one."""

    def crops(self, size: Size, spec: EncoderSpec) -> tuple[Crop, ...]:
        return super().crops(size, spec) * (1 + size.width // 100)


class Sized(Several):
    needs_size: ClassVar[bool] = True


class Eager(CrossAttention):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for name, parameter in self.named_parameters():
            if name.endswith("ff_gate"):
                nn.init.ones_(parameter)


class HalfConfig(FusionConfig):
    def spell(self, layout: ImageLayout, shapes: Sequence[Grid | int]) -> list[str | int]:
        return [sum(map(count_of, shapes)) // 2]


class Half(Inline):
    Config = HalfConfig


class Deaf(CrossAttention):
    def inserts(self) -> dict[int, Any]:
        return {}


class Normalising(TinyEncoder):
    def forward(self, pixels_C3HW: Tensor) -> Features:
        return super().forward(pixels_C3HW - pixels_C3HW.mean(0))


class Coarse(TinyEncoder):
    @classmethod
    def describe(cls, config: Any) -> EncoderSpec:
        spec = super().describe(config)
        return EncoderSpec(spec.size, spec.stride, spec.width * 2, spec.mean, spec.std)


class Dropping(TinyEncoder):
    def forward(self, pixels_C3HW: Tensor) -> Features:
        return super().forward(nn.functional.dropout(pixels_C3HW, 0.5, self.training))


class Counted(nn.Module):
    """A block that does more at each call."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.calls = block, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.block(x) * torch.tensor(float(self.calls))


class Counting(TinyEncoder):
    def __init__(self, config: Any, spec: EncoderSpec) -> None:
        super().__init__(config, spec)
        self.layers[0] = Counted(self.layers[0])


class Lower(TinyLlama):
    def tokenizer(self, texts: Any) -> Any:
        from tokenizers import normalizers

        made = super().tokenizer(texts)
        made.backend_tokenizer.normalizer = normalizers.Lowercase()
        return made


class Twins(Source):
    beni_api = 1
    Config = PartConfig

    def split(self, name: str) -> list[Sample] | None:
        sample = Sample("one", (Turn("user", ("what?",)), Turn("assistant", (" ",))))
        return [sample, sample] if name == "train" else None


class Restarting(Source):
    """A stream that begins again wherever it is to go on."""

    beni_api = 1
    Config = PartConfig

    def split(self, name: str) -> Stream | None:
        return _Restarting() if name == "train" else None


class _Restarting(Stream):
    def read(self, position: Any, count: int) -> Reading:
        turns = (Turn("user", ("what?",)), Turn("assistant", ("yes",)))
        samples = [] if position == 3 else [Sample(str(number), turns) for number in range(min(count, 3))]
        return Reading(samples, 1 if count == 1 else 3)


class Endless(Twins):
    def split(self, name: str) -> list[Sample] | None:
        return super().split("train")
