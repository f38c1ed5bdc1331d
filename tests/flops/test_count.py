"""What is counted of a forward pass, and what its backward pass will cost."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from beni.errors import Uncountable
from beni.flops.count import Flops, PartFlops, added, count

META = torch.device("meta")
X = torch.empty(5, 3, device=META)


def total(counts: PartFlops) -> Flops:
    return sum(counts.values(), Flops())


def both_passes(module: nn.Module, x: Tensor) -> int:
    """What PyTorch counts while it runs both passes."""
    with FlopCounterMode(display=False) as counter:
        module(x).sum().backward()
    return counter.get_total_flops()


def chain(*trained: bool) -> nn.Sequential:
    """Three layers of which some are trained."""
    layers = [nn.Linear(3, 4, device=META), nn.Linear(4, 4, device=META), nn.Linear(4, 2, device=META)]
    return nn.Sequential(*(layer.requires_grad_(train) for layer, train in zip(layers, trained, strict=True)))


@pytest.mark.parametrize(
    ("trained", "backward"),
    [
        ((False, False, False), (0, 0, 0)),
        ((True, True, True), (1, 2, 2)),  # nothing asks for the gradient of the input
        ((False, True, True), (0, 1, 2)),
        ((True, False, False), (1, 1, 1)),  # the gradient passes through what is frozen
        ((False, False, True), (0, 0, 1)),
    ],
)
def test_the_backward_pass_costs_what_gradients_are_needed(
    trained: tuple[bool, ...], backward: tuple[int, ...]
) -> None:
    model = chain(*trained)
    _, counts = count(lambda: model(X), {str(index): [layer] for index, layer in enumerate(model)}, "rest")
    forward = [2 * 5 * 3 * 4, 2 * 5 * 4 * 4, 2 * 5 * 4 * 2]
    assert [counts[str(i)].forward for i in range(3)] == forward
    assert [counts[str(i)].backward for i in range(3)] == [
        f * times for f, times in zip(forward, backward, strict=True)
    ]
    if any(trained):
        assert total(counts).model == both_passes(model, X)


@pytest.mark.parametrize("trained", ["all", "head", "blocks.1"])
def test_a_vision_transformer_is_counted_as_pytorch_counts_it(trained: str) -> None:
    with META:
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=7)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained == "all" or name.startswith(trained))
    image = torch.empty(2, 3, 64, 64, device=META)
    _, counts = count(lambda: model(image), {}, "model")
    assert total(counts).model == both_passes(model, image)


def test_attention_is_three_times_its_forward_pass_though_every_weight_is_frozen() -> None:
    q = torch.empty(2, 4, 6, 8, device=META, requires_grad=True)
    _, counts = count(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True), {}, "attention")
    assert counts["attention"] == Flops(4 * 2 * 4 * 6 * 6 * 8, 8 * 2 * 4 * 6 * 6 * 8)


def test_a_grouped_convolution_is_not_a_dense_one() -> None:
    """PyTorch counts its forward pass alike, and takes its backward pass for a dense one's."""
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=8, device=META)
    image = torch.empty(1, 8, 5, 5, device=META, requires_grad=True)
    _, counts = count(lambda: layer(image), {}, "model")
    forward = 2 * 25 * 8 * 9
    assert counts["model"] == Flops(forward, 2 * forward)


def test_operations_belong_to_the_innermost_part() -> None:
    inner, outer = nn.Linear(3, 3, device=META), nn.Sequential()
    outer.append(nn.Linear(3, 3, device=META)).append(inner)

    def work() -> Tensor:
        return outer(X @ torch.empty(3, 3, device=META))

    _, counts = count(work, {"outer": [outer], "inner": [inner]}, "rest")
    assert {part: flops.forward for part, flops in counts.items()} == {"rest": 90, "outer": 90, "inner": 90}
    assert not inner._forward_hooks and not outer._forward_pre_hooks


def test_a_part_that_fails_leaves_no_hooks() -> None:
    layer = nn.Linear(4, 4, device=META)
    with pytest.raises(RuntimeError):
        count(lambda: layer(X), {"layer": [layer]}, "rest")
    assert not layer._forward_hooks and not layer._forward_pre_hooks


def test_recomputed_blocks_cost_their_forward_pass_again_where_a_gradient_leaves_them() -> None:
    model = chain(False, True, True)
    _, counts = count(lambda: model(X), {}, "model", recomputed=list(model))
    assert counts["model"].again == 2 * 5 * 4 * 4 + 2 * 5 * 4 * 2  # not the first one's, which is frozen
    assert counts["model"].hardware == counts["model"].model + counts["model"].again
    kept = {torch.ops.aten.addmm.default}
    _, counts = count(lambda: model(X), {}, "model", recomputed=list(model), kept=kept)
    assert counts["model"].again == 0


def test_an_operation_of_ones_own_is_counted_by_its_formula() -> None:
    @torch.library.custom_op("beni_tests::product", mutates_args=())
    def product(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    product.register_fake(lambda a, b: a.new_empty(a.shape[0], b.shape[1]))
    a, b = torch.empty(2, 3, device=META), torch.empty(3, 4, device=META)
    with pytest.raises(Uncountable, match="'beni_tests::product' has no formula"):
        count(lambda: product(a, b), {}, "model")
    op = torch.ops.beni_tests.product
    try:
        register_flop_formula(op)(lambda a, b, *, out_shape, **_: 2 * a[0] * a[1] * b[1])
        assert count(lambda: product(a, b), {}, "model")[1] == {"model": Flops(48)}
    finally:
        flop_registry.pop(op)


def test_counts_add_up_part_by_part() -> None:
    assert added({"a": Flops(1, 2, 3)}, {"a": Flops(10), "b": Flops(0, 5)}) == {"a": Flops(11, 2, 3), "b": Flops(0, 5)}
