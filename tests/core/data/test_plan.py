"""The plan: everything once, under budgets, from (seed, epoch) alone."""

import dataclasses
import hashlib
import itertools
import pickle
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from beni.data.order import LOOKAHEAD, ORDERS
from beni.data.plan import Lengths, Member, Plan, Row
from beni.errors import DataError
from beni.options import BatchConfig
from beni.sample import ImageRef, Sample, Turn, vqa_sample
from beni_plugins.views.single import Single, SingleConfig
from tests.conftest import MakePicture
from tests.core.data.tiny import composer


@pytest.fixture
def sources(picture: MakePicture) -> list[list[Sample]]:
    """40 pictures with 1 to 4 questions of various lengths; 60 texts; 9 pictures of both."""
    rng = np.random.default_rng(0)

    def ask(name: str, image: ImageRef) -> Sample:
        return vqa_sample(name, image, "?" * int(rng.integers(1, 20)), "y" * int(rng.integers(1, 9)))

    seen = [ask(f"p{n}-{k}", picture(n)) for n in range(40) for k in range(1 + n % 4)]
    text = [Sample(f"t{n}", (Turn("text", ("x" * int(rng.integers(2, 60)),)),)) for n in range(60)]
    return [seen, text, [ask(f"q{n}", picture(n)) for n in range(9)]]


def lengths_of(sources: Sequence[Sequence[Sample]]) -> list[Lengths]:
    make = composer()
    return [Lengths(samples, make) for samples in sources]


BUDGET = BatchConfig(rows=3, row_tokens=120, row_images=3, row_crops=5, row_memory=100)


def members(rows: Sequence[Row]) -> list[Member]:
    return [member for row in rows for tree in row for member in tree]


def ordered(order: str, rows: int = 3) -> BatchConfig:
    return dataclasses.replace(BUDGET, order=order, rows=rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ORDERS)
def test_every_sample_once_per_epoch(sources: list[list[Sample]], order: str) -> None:
    plan = Plan(lengths_of(sources), (), ordered(order), seed=0)
    everything = {Member(s, i) for s, samples in enumerate(sources) for i in range(len(samples))}
    for epoch in (0, 1, 5):
        planned = members([row for step in range(plan.steps(epoch)) for row in plan.step(epoch, step)])
        assert len(planned) == len(everything) and set(planned) == everything


@pytest.mark.parametrize("weights", [(), (1, 2, 0.5, 0), (1, 0.001, 0, 2)])
def test_every_epoch_has_as_many_samples_as_it_says(sources: list[list[Sample]], weights: Sequence[float]) -> None:
    """Also where a source is empty, and its share is nobody's."""
    plan = Plan(lengths_of([*sources, []]), weights, BUDGET, seed=0)
    assert [len(members(plan.rows(epoch))) for epoch in range(3)] == [plan.samples] * 3


@pytest.mark.parametrize("seed", range(3))
def test_no_row_is_beyond_a_budget(sources: list[list[Sample]], seed: int) -> None:
    make = composer()
    for budget in (
        BUDGET,
        BatchConfig(rows=1, row_tokens=300, row_images=100, row_memory=9),
        BatchConfig(rows=1, row_tokens=300, row_images=100, row_crops=5),
        BatchConfig(rows=1, row_tokens=90),
    ):
        plan = Plan(lengths_of(sources), (), budget, seed)
        for row in plan.rows(0):
            tokens = images = crops = memory = 0
            for tree in row:
                documents = [make.compose(sources[m.source][m.index]) for m in tree]
                head = documents[0].head if len(tree) > 1 else 0
                tokens += head + sum(len(d) - head for d in documents)
                images += len(documents[0].images)
                crops += sum(len(i.layout.crops["main"]) for i in documents[0].images)
                memory += sum(sum(i.counts) for i in documents[0].images)
            assert tokens <= budget.row_tokens and images <= budget.row_images
            assert crops <= budget.row_crops and memory <= budget.row_memory


def test_an_epoch_takes_as_many_steps_whatever_an_image_costs(sources: list[list[Sample]]) -> None:
    batch = BatchConfig(row_tokens=10_000, row_images=4)
    few, many = (Plan([Lengths(sources[0], composer(visual_tokens=n))], (), batch, seed=0) for n in (1, 40))
    assert few.lengths[0].total[0] + 39 == many.lengths[0].total[0]
    for plan in (few, many):
        assert [len(row) for row in plan.rows(0)] == [4] * 10


def test_rows_are_filled(sources: list[list[Sample]]) -> None:
    """Best fit over open rows leaves little room: the rows that could not have been joined are nearly all."""
    lengths = lengths_of([sources[1]])
    plan = Plan(lengths, (), BatchConfig(rows=1, row_tokens=120), seed=0)
    assert len(plan.rows(0)) <= 1.15 * lengths[0].total.sum() / 120 + 1


def test_many_open_rows_stay_within_their_budget() -> None:
    """More rows than are kept open, each with room for something small that comes late."""
    long, short = "x" * 90, "y" * 9
    samples = [
        Sample(f"{n}", (Turn("text", (text,)),)) for n, text in enumerate([long] * (LOOKAHEAD + 9) + [short] * 99)
    ]
    plan = Plan(lengths_of([samples]), (), BatchConfig(rows=1, row_tokens=100), seed=0, shuffle=False)
    costs = [sum(len(samples[m.index].turns[0].content[0]) for tree in row for m in tree) for row in plan.rows(0)]  # type: ignore[arg-type]
    assert max(costs) <= 100
    assert costs[9 : LOOKAHEAD + 9] == [99] * LOOKAHEAD and costs[:9] == [90] * 9


@pytest.mark.parametrize("order", ORDERS)
def test_trees_share_equal_heads_only(sources: list[list[Sample]], order: str) -> None:
    make = composer()
    plan = Plan(lengths_of(sources), (), BatchConfig(rows=2, row_tokens=120, order=order), seed=1)  # type: ignore[arg-type]
    joined = 0
    for row in plan.rows(0):
        for tree in row:
            documents = [make.compose(sources[m.source][m.index]) for m in tree]
            if len(tree) > 1:
                joined += 1
                first = documents[0]
                assert first.head and all((d.ids[: first.head] == first.ids[: first.head]).all() for d in documents)
                assert len({d.images[0].ref.data for d in documents}) == 1
    assert joined > 20


@pytest.mark.parametrize("order", ORDERS)
def test_the_seed_decides_everything(sources: list[list[Sample]], order: str) -> None:
    lengths, batch = lengths_of(sources), ordered(order)
    one, same, other = (Plan(lengths, (1, 2, 1), batch, seed).rows(3) for seed in (7, 7, 8))
    assert one == same != other
    assert one != Plan(lengths, (1, 2, 1), batch, 7).rows(4)
    assert pickle.loads(pickle.dumps(Plan(lengths, (1, 2, 1), batch, 7))).rows(3) == one


def test_shuffled_rows_are_those_of_the_first_release(sources: list[list[Sample]]) -> None:
    """Golden: a run that is repeated with a later release sees the same rows."""
    lengths = lengths_of(sources)
    for weights, digest in (((), "0b2f6bc7ce056ed2"), ((1, 2, 1), "fd9b2ce8bfef89e1")):
        plan = Plan(lengths, weights, BUDGET, seed=7)
        rows = [[[[m.source, m.index] for m in tree] for tree in row] for e in (0, 1, 5) for row in plan.rows(e)]
        assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_modality_steps_have_images_only_or_none(sources: list[list[Sample]], rows: int) -> None:
    plan = Plan(lengths_of(sources), (), ordered("modality", rows), seed=0)
    for epoch in (0, 1):
        kinds = [
            {bool(sources[m.source][m.index].images) for m in members(plan.step(epoch, step))}
            for step in range(plan.steps(epoch))
        ]
        per_kind = [sum(kind == {seen} for kind in kinds) for seen in (True, False)]
        assert min(per_kind) > 2 and sum(len(kind) == 2 for kind in kinds) <= (rows > 1)
        assert all(len(kind) == 1 for kind in kinds[:-2])


def test_without_shuffling_the_order_is_the_datas(sources: list[list[Sample]]) -> None:
    plan = Plan(lengths_of([sources[1]]), (), BatchConfig(rows=1, row_tokens=60), seed=0, shuffle=False)
    assert [row[0][0].index for row in plan.rows(0)] == sorted(row[0][0].index for row in plan.rows(0))
    assert plan.rows(0) == plan.rows(1)
    for order in ORDERS:
        again = Plan(plan.lengths, (), dataclasses.replace(plan.batch, order=order), seed=0, shuffle=False)
        assert again.rows(0) == plan.rows(0)  # of the evaluation, whatever training does


def test_weights_are_shares_and_use_every_sample(sources: list[list[Sample]]) -> None:
    sizes = [len(samples) for samples in sources]
    total = sum(sizes)
    plan = Plan(lengths_of(sources), (1, 2, 1), BUDGET, seed=0)
    quotas = [round(total / 4), round(total / 2), round(total / 4)]
    seen: list[Counter[int]] = [Counter(), Counter(), Counter()]
    for epoch in range(8):
        counts: Counter[int] = Counter()
        for member in members(plan.rows(epoch)):
            counts[member.source] += 1
            seen[member.source][member.index] += 1
        assert [counts[s] for s in range(3)] == quotas
        for source, quota in enumerate(quotas):  # cycling: no sample is a whole lap ahead of another
            drawn = (epoch + 1) * quota
            uses = [seen[source][i] for i in range(sizes[source])]
            assert max(uses) - min(uses) <= 1 and sum(uses) == drawn


def test_a_weight_of_zero_leaves_a_source_out(sources: list[list[Sample]]) -> None:
    plan = Plan(lengths_of(sources), (0, 1, 0), BUDGET, seed=0)
    assert {member.source for member in members(plan.rows(0))} == {1}


@pytest.mark.parametrize("order", ORDERS)
def test_walking_on_is_the_tail_of_walking(sources: list[list[Sample]], order: str) -> None:
    plan = Plan(lengths_of(sources), (1, 1, 1), ordered(order), seed=0)
    walk = list(itertools.islice(plan.walk(0, 0), 3 * plan.steps(0)))
    for start in (0, 1, plan.steps(0) - 1, plan.steps(0), plan.steps(0) + 2):
        rest = list(itertools.islice(plan.walk(*walk[start]), len(walk) - start))
        assert rest == walk[start:]
        assert [plan.step(*at) for at in rest[:4]] == [plan.step(*at) for at in walk[start : start + 4]]


def test_the_last_step_is_filled_with_empty_rows(sources: list[list[Sample]]) -> None:
    lengths = lengths_of([sources[1][:5]])
    plan = Plan(lengths, (), BatchConfig(rows=4, row_tokens=10_000), seed=0)
    assert plan.steps(0) == 1
    first, *rest = plan.step(0, 0)
    assert len(members([first])) == 5 and rest == [(), (), ()]


def test_unusable_samples_are_told_by_id(picture: MakePicture) -> None:
    samples = [
        vqa_sample("fine", picture(), "a?", "b"),
        vqa_sample("silent", picture(), "a?", ""),
        vqa_sample("long", picture(), "a" * 99, "b"),
        Sample("cut", (Turn("user", ("a?",)),)),
    ]
    lengths = Lengths(samples, composer(max_tokens=50))
    assert [name for name, _ in lengths.bad] == ["silent", "long", "cut"]
    assert all(name in why for name, why in lengths.bad)
    assert members(Plan([lengths], (), BUDGET, 0).rows(0)) == [Member(0, 0)]
    with pytest.raises(DataError, match="no sample with anything to learn: sample 'silent'"):
        Plan([Lengths(samples[1:], composer(max_tokens=50))], (), BUDGET, 0)


class Measured(Single):
    """A view that has to know the size."""

    needs_size = True


def test_an_unreadable_header_is_a_bad_sample_where_sizes_matter(picture: MakePicture) -> None:
    broken, fine = (
        vqa_sample(name, ref, "a?", "b") for name, ref in (("broken", ImageRef(data=b"no")), ("fine", picture()))
    )
    make = dataclasses.replace(composer(), view=Measured(SingleConfig()))
    assert Lengths([broken, fine], make).bad == [("broken", "image (2 bytes) is not in any image format")]
    assert Lengths([broken, fine], composer()).bad == []  # nobody has looked yet


def test_what_lengths_say_is_what_documents_are(sources: list[list[Sample]]) -> None:
    make = composer()
    lengths = Lengths(sources[0], make)
    for index in range(0, len(sources[0]), 7):
        document = make.compose(sources[0][index])
        assert (lengths.total[index], lengths.head[index], lengths.head_key[index]) == (
            len(document),
            document.head,
            document.head_key,
        )
        assert (lengths.crops[index], lengths.memory[index]) == (1, 3)
        assert lengths.targets[index] == len(sources[0][index].answer) + 1
