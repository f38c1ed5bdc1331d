"""What counts the operations of a model as it will be trained."""

from beni.config import RunOptions
from beni.flops.account import FlopMeter
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.parts import stacks
from beni.training.recompute import DEAR


def meter_of(model: BeniForConditionalGeneration, options: RunOptions) -> FlopMeter:
    """Counts the operations of a model as it will be computed.

    Args:
        model: before it is sharded, with what is not trained frozen.
        options: of the run: what is computed again.

    Raises:
        Uncountable: a part of it cannot be counted.
    """
    blocks = [block for stack in stacks(model) for block in stack[:: options.activation_checkpointing_every]]
    recomputed = [] if options.activation_checkpointing == "none" else blocks
    return FlopMeter(model, recomputed, DEAR if options.activation_checkpointing == "selective" else [])
