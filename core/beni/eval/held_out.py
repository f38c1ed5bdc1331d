"""The loss on rows that are not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from beni.config import BatchConfig
from beni.data.document import Composer
from beni.data.features import FeatureStore
from beni.data.loader import Rows
from beni.data.plan import Lengths, Plan
from beni.model.modeling import BeniForConditionalGeneration
from beni.processes import Processes
from beni.sample import Sample


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Samples in rows, in the order of the data."""

    rows: Rows
    targets: int
    """Tokens that are predicted."""
    characters: int
    """That those tokens spell, where all samples are plain text; else 0."""
    unusable: int
    """Samples that are left out, because they are longer than a row."""

    @classmethod
    def of(
        cls,
        sources: Sequence[Sequence[Sample]],
        composer: Composer,
        batch: BatchConfig,
        features: FeatureStore | None = None,
    ) -> "HeldOut":
        """Plan rows of all samples that fit into one.

        Args:
            features: has what the encoders make of each image; None: encoders see them.

        Raises:
            DataError: there is none.
        """
        lengths = [Lengths(samples, composer) for samples in sources]
        rows = Rows(sources, Plan(lengths, (), batch, seed=0, shuffle=False), composer)
        rows.features = features
        targets = sum(int(source.targets.sum()) for source in lengths)
        spelled = [
            _characters(samples[index], composer)
            for samples, source in zip(sources, lengths, strict=True)
            for index in source.usable.tolist()
        ]
        plain = [count for count in spelled if count is not None]
        characters = sum(plain) if len(plain) == len(spelled) else 0
        return cls(rows, targets, characters, sum(len(source.bad) for source in lengths))

    def figures(self, model: BeniForConditionalGeneration, processes: Processes) -> dict[str, float]:
        """`val_loss`, and of plain text `val_nats_per_char`, in which tokenizers can be compared.

        It is left out if samples were left out, which would make it one of less text; `val_unusable` says how many.
        """
        loss = self.loss(model, processes)
        if self.unusable:
            return {"val_loss": loss, "val_unusable": self.unusable}
        per_character = {"val_nats_per_char": loss * self.targets / self.characters} if self.characters else {}
        return {"val_loss": loss, **per_character}

    def loss(self, model: BeniForConditionalGeneration, processes: Processes) -> float:
        """Mean cross-entropy per target, in nats, weighted if the samples are; every process takes part."""
        was_training = model.training
        model.eval()
        total = torch.zeros((), dtype=torch.float64)
        weight = 0.0
        with torch.no_grad():
            for step in range(self.rows.plan.steps(0)):
                share = range(processes.rank, self.rows.plan.batch.rows, processes.world)
                for number in share:
                    batch = self.rows[(0, step, number)]
                    total += model(packed=batch.to(processes.device)).loss.double().cpu()
                    weight += batch.stats.weight
        model.train(was_training)
        loss, weight = processes.sum(total.item(), weight)
        return loss / (weight or 1)


def _characters(sample: Sample, composer: Composer) -> int | None:
    """How many characters of plain text are predicted; None of anything else."""
    text = "".join(part for turn in sample.turns for part in turn.content if isinstance(part, str))
    if sample.turns[0].role != "text" or sample.images:
        return None
    tokenizer, first = composer.template.tokenizer, int(composer.compose(sample).ids[0])
    if first == tokenizer.bos_token_id:
        return len(text)
    return len(text) - len(tokenizer.decode([first]))  # nothing stands before it that it could be predicted from
