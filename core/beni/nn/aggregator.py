"""Cambrian-1's spatial vision aggregation: each query attends to the tokens that lie under it in every encoder's map.

Reference: cambrian-mllm/cambrian, cambrian/model/vision_sampler.py (VisionTokenSampler; `joint`
VisionCrossAttentionLayer, `sep` VisionAggregationLayer), whose parameter names are kept. Its 16 heads are an option
here.

Shapes: V queries, D their width, R tokens of one encoder under a query, C their width, H hidden width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.nn.looks import attention_weights, listening
from beni.types import Windows

Variant = Literal["joint", "sep"]
SEPARATE = r"(.+\.aggregate_\d+)\.attention_layer\.(.+)"
"""The reference's names of what `sep` has for each encoder; here the two groups follow each other."""


class SpatialAggregator(nn.Module):
    """Layers that refine queries by what lies under them.

    Args:
        width: D of the queries.
        sizes: tokens of each encoder under a query.
        hidden: C of these tokens and H of the layers; divisible by `heads`.
        heads: attention heads.
        depth: layers.
        variant: joint: one attention over the tokens of all encoders; sep: one for each encoder, then a weighted sum.
    """

    def __init__(
        self, width: int, sizes: Sequence[int], hidden: int, heads: int, depth: int, variant: Variant = "joint"
    ) -> None:
        super().__init__()
        layer = JointLayer if variant == "joint" else SeparateLayer
        self.layers = nn.ModuleList(layer(width, sizes, hidden, heads) for _ in range(depth))

    def forward(self, q_VD: Float[Tensor, "V D"], windows: Windows) -> Float[Tensor, "V D"]:
        for layer in self.layers:
            q_VD = layer(q_VD, windows)
        return q_VD


class AggregationLayer(nn.Module):
    """What both variants share: the query with the image's summary in, a residual of the query out."""

    def __init__(self, width: int, sizes: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.proj_context = nn.Linear(hidden, hidden, bias=False)
        self.proj_in = nn.Linear(width + hidden, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.proj_out = TwoLayers(hidden, hidden, width)
        for index, size in enumerate(sizes):
            if size > 1:  # a single token has only one place
                self.register_parameter(f"pos_embed_{index}", nn.Parameter(torch.randn(size, hidden)))

    def forward(self, q_VD: Float[Tensor, "V D"], windows: Windows) -> Float[Tensor, "V D"]:
        query = torch.cat([q_VD, self.proj_context(windows.context_VC)], dim=-1)
        z_VH = before_VH = self.proj_in(query)
        keys = [self.placed(index, keys_VRC) for index, keys_VRC in enumerate(windows.keys)]
        z_VH = self.norm(z_VH + self.read(query, z_VH, keys, windows.visible))
        if listener := listening():
            listener.windows(self, self.weights(query, before_VH, keys, windows.visible), windows)
        return q_VD + self.proj_out(z_VH)

    def placed(self, index: int, keys_VRC: Float[Tensor, "V R C"]) -> Float[Tensor, "V R C"]:
        """Tokens of one encoder with the embedding of their place in the window."""
        return keys_VRC + getattr(self, f"pos_embed_{index}") if self.sizes[index] > 1 else keys_VRC

    def read(
        self,
        query: Float[Tensor, "V E"],
        z_VH: Float[Tensor, "V H"],
        keys: Sequence[Float[Tensor, "V _ C"]],
        visible: Sequence[Bool[Tensor, "V _"]],
    ) -> Float[Tensor, "V H"]:
        """What the queries take from the encoders' tokens."""
        raise NotImplementedError

    def weights(
        self,
        query: Float[Tensor, "V E"],
        z_VH: Float[Tensor, "V H"],
        keys: Sequence[Float[Tensor, "V _ C"]],
        visible: Sequence[Bool[Tensor, "V _"]],
    ) -> list[Float[Tensor, "V _ _"]]:
        """[V, heads, R] the share of each encoder's tokens in what `read` takes; in a head all of them sum to one."""
        raise NotImplementedError


class JointLayer(AggregationLayer):
    """One attention over the tokens of all encoders, with keys and values projected per encoder."""

    def __init__(self, width: int, sizes: Sequence[int], hidden: int, heads: int) -> None:
        super().__init__(width, sizes, hidden)
        self.cross_attn = WindowAttention(hidden, heads, [f"_{index}" for index in range(len(sizes))])

    def read(
        self,
        query: Float[Tensor, "V E"],
        z_VH: Float[Tensor, "V H"],
        keys: Sequence[Float[Tensor, "V _ C"]],
        visible: Sequence[Bool[Tensor, "V _"]],
    ) -> Float[Tensor, "V H"]:
        return self.cross_attn(z_VH, keys, visible)

    def weights(
        self,
        query: Float[Tensor, "V E"],
        z_VH: Float[Tensor, "V H"],
        keys: Sequence[Float[Tensor, "V _ C"]],
        visible: Sequence[Bool[Tensor, "V _"]],
    ) -> list[Float[Tensor, "V _ _"]]:
        return list(self.cross_attn.weights(z_VH, keys, visible).split(self.sizes, dim=-1))


class SeparateLayer(AggregationLayer):
    """An attention for each encoder (two linear layers where a query has one token under it), summed with weights."""

    def __init__(self, width: int, sizes: Sequence[int], hidden: int, heads: int) -> None:
        super().__init__(width, sizes, hidden)
        if len(sizes) > 1:  # a single encoder has all of the weight
            self.weight_mlp = TwoLayers(width + hidden, hidden, len(sizes))
        for index, size in enumerate(sizes):
            part = WindowAttention(hidden, heads, [""]) if size > 1 else TwoLayers(hidden, hidden, hidden)
            self.add_module(f"aggregate_{index}", part)

    def read(
        self,
        query: Float[Tensor, "V E"],
        z_VH: Float[Tensor, "V H"],
        keys: Sequence[Float[Tensor, "V _ C"]],
        visible: Sequence[Bool[Tensor, "V _"]],
    ) -> Float[Tensor, "V H"]:
        read = []
        for index, (keys_VRC, visible_VR) in enumerate(zip(keys, visible, strict=True)):
            part = getattr(self, f"aggregate_{index}")
            single = self.sizes[index] == 1
            read.append(part(keys_VRC[:, 0]) if single else part(z_VH, [keys_VRC], [visible_VR]))
        if len(read) == 1:
            return read[0]
        weights_VS = self.weight_mlp(query).softmax(-1)
        return torch.einsum("vs,vsh->vh", weights_VS, torch.stack(read, dim=1))

    def weights(
        self,
        query: Float[Tensor, "V E"],
        z_VH: Float[Tensor, "V H"],
        keys: Sequence[Float[Tensor, "V _ C"]],
        visible: Sequence[Bool[Tensor, "V _"]],
    ) -> list[Float[Tensor, "V _ _"]]:
        weights_VS = self.weight_mlp(query).softmax(-1) if len(keys) > 1 else query.new_ones(len(query), 1)
        found = []
        for index, (keys_VRC, visible_VR) in enumerate(zip(keys, visible, strict=True)):
            whole = self.sizes[index] == 1  # all that it takes from this encoder is of its one token
            part = getattr(self, f"aggregate_{index}")
            read = query.new_ones(len(query), 1, 1) if whole else part.weights(z_VH, [keys_VRC], [visible_VR])
            found.append(read * weights_VS[:, index, None, None])
        return found


class WindowAttention(nn.Module):
    """One query each, over the tokens of one or several encoders.

    Args:
        width: of queries, keys and values.
        heads: attention heads.
        names: one suffix per encoder, for the reference's parameter names.
    """

    def __init__(self, width: int, heads: int, names: Sequence[str]) -> None:
        super().__init__()
        self.heads = heads
        self.names = tuple(names)
        self.q_proj = _normed(width)
        self.o_proj = nn.Linear(width, width, bias=False)
        for name in names:
            self.add_module(f"k_proj{name}", _normed(width))
            self.add_module(f"v_proj{name}", _normed(width))

    def forward(
        self,
        q_VH: Float[Tensor, "V H"],
        keys: Sequence[Float[Tensor, "V _ H"]],
        visible: Sequence[Bool[Tensor, "V _"]],
    ) -> Float[Tensor, "V H"]:
        k_VRH, v_VRH = (
            torch.cat([getattr(self, f"{kind}_proj{n}")(x) for n, x in zip(self.names, keys, strict=True)], dim=1)
            for kind in "kv"
        )
        q, k, v = (
            rearrange(x, "v r (h k) -> v h r k", h=self.heads) for x in (self.q_proj(q_VH)[:, None], k_VRH, v_VRH)
        )
        mask_V11R = torch.cat(list(visible), dim=1)[:, None, None]
        return self.o_proj(rearrange(F.scaled_dot_product_attention(q, k, v, mask_V11R), "v h 1 k -> v (h k)"))

    def weights(
        self,
        q_VH: Float[Tensor, "V H"],
        keys: Sequence[Float[Tensor, "V _ H"]],
        visible: Sequence[Bool[Tensor, "V _"]],
    ) -> Float[Tensor, "V heads R"]:
        """Those of `forward`."""
        k_VRH = torch.cat([getattr(self, f"k_proj{n}")(x) for n, x in zip(self.names, keys, strict=True)], dim=1)
        q, k = (rearrange(x, "v r (h k) -> v h r k", h=self.heads) for x in (self.q_proj(q_VH)[:, None], k_VRH))
        return attention_weights(q, k, torch.cat(list(visible), dim=1)[:, None, None])[:, :, 0]


class TwoLayers(nn.Module):
    """Linear, exact GELU, Linear; no biases."""

    def __init__(self, in_width: int, hidden: int, out_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_width, hidden, bias=False)
        self.linear_2 = nn.Linear(hidden, out_width, bias=False)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch E"]:
        return self.linear_2(F.gelu(self.linear_1(x)))


def _normed(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
