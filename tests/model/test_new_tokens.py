"""Tokens the LLM does not know get embeddings of their own; its table is never touched."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from beni.data.batch import pack
from beni.model.build import END, Built
from beni.model.llm import NewTokens
from beni.model.processing import BeniProcessor
from beni.sample import VISUAL_MARK
from tests.model.small import CONVERSATIONS, FUSIONS, inputs, make

CHAT = (
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def llm_without(folder: Path, *missing: str) -> str:
    """A published LLM whose tokenizer lacks some of bos, eos and pad."""
    source = make("inline")
    tokens = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "pad") if kind not in missing}
    bare = PreTrainedTokenizerFast(tokenizer_object=source.tokenizer.backend_tokenizer, chat_template=CHAT, **tokens)
    llm = source.model.llm
    for kind in missing:
        setattr(llm.config, f"{kind}_token_id", None)
        setattr(llm.generation_config, f"{kind}_token_id", None)
    llm.save_pretrained(folder)
    bare.save_pretrained(folder)
    return str(folder)


def build_on(folder: str, fusion: str = "inline") -> Built:
    return make(fusion, llm={"name": "hf", "model": folder})


@pytest.mark.parametrize("missing", ["bos", "pad"])
def test_tokenizers_without_bos_or_pad_need_nothing(missing: str, tmp_path: Path) -> None:
    built = build_on(llm_without(tmp_path / "llm", missing))
    assert built.model.new_tokens.ids == ()
    assert getattr(built.tokenizer, f"{missing}_token_id") is None
    built.model(packed=pack([[built.composer.compose(s)] for s in CONVERSATIONS], built.composer)).loss.backward()
    batch = inputs(built, CONVERSATIONS)
    built.model.eval()
    together = built.model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)[:, -4:]
    alone = [
        built.model.generate(**inputs(built, (s,)), max_new_tokens=4, min_new_tokens=4, do_sample=False)
        for s in CONVERSATIONS
    ]
    assert together.tolist() == [row[0, -4:].tolist() for row in alone]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_tokenizers_without_eos_get_one_that_is_learned(fusion: str, tmp_path: Path) -> None:
    """With the LLM frozen, the model learns to end its answers, and still does after a reload."""
    built = build_on(llm_without(tmp_path / "llm", "eos"), fusion)
    model, end = built.model, built.tokenizer.convert_tokens_to_ids(END)
    assert built.tokenizer.eos_token == END
    assert model.new_tokens.ids[0] == end and model.new_tokens.predicted == 1
    assert model.config.stop_token_ids == [end]
    model.llm.requires_grad_(False)
    before = {name: value.clone() for name, value in model.llm.state_dict().items()}

    documents = [built.composer.compose(sample) for sample in CONVERSATIONS]
    assert all(doc.ids[-1] == doc.labels[-1] == end for doc in documents)
    row = pack([[doc] for doc in documents], built.composer)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)

    def loss_of_end() -> Tensor:
        rows: list[Tensor] = []
        hook = model.llm.register_forward_hook(lambda module, args, out: rows.append(out.logits[0]))
        model(packed=row)
        hook.remove()
        ends = row.targets_K == end
        return nn.functional.cross_entropy(rows[0][ends], row.targets_K[ends]).detach()

    start = loss_of_end()
    for _ in range(25):
        optimizer.zero_grad()
        (model(packed=row).loss / row.stats.targets).backward()
        optimizer.step()
    assert loss_of_end() < 0.5 * start
    assert all(torch.equal(value, before[name]) for name, value in model.llm.state_dict().items()), (
        "the frozen LLM moved"
    )

    model.eval().save_pretrained(tmp_path / "model")
    BeniProcessor(built.tokenizer, built.composer).save_pretrained(tmp_path / "model")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert AutoProcessor.from_pretrained(tmp_path / "model").tokenizer.eos_token_id == end
    batch = inputs(built, CONVERSATIONS)
    with torch.no_grad():
        logits = model(**batch).logits
        assert torch.equal(again(**batch).logits, logits)
    assert logits.shape[-1] > end
    assert again.generation_config.eos_token_id in (end, [end])


def test_published_special_tokens_stay(tmp_path: Path) -> None:
    """Tokens added by us do not push out those that the tokenizer has already."""
    folder = llm_without(tmp_path / "llm")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>"]})
    tokenizer.save_pretrained(folder)
    built = build_on(folder, "xattn")
    special = set(built.tokenizer.all_special_tokens)
    assert {"<tool>", "<bos>", "<eos>", "<pad>", VISUAL_MARK, "<image>"} <= special
    assert built.tokenizer.decode(built.tokenizer("a<tool>b")["input_ids"], skip_special_tokens=True) == "ab"


def embedding(vocabulary: int = 6, width: int = 4) -> nn.Embedding:
    return nn.Embedding(vocabulary, width)


@pytest.mark.parametrize("ids", [(7, 9), (2, 9), (0, 5)], ids=["outside", "one inside", "inside"])
def test_embeddings_of_new_tokens(ids: tuple[int, ...]) -> None:
    table, new = embedding(), NewTokens(ids, 1, 4)
    new.start_from(table.weight)
    assert new.weight is not None
    asked = torch.tensor([[1, ids[0], 3], [ids[1], ids[1], 1]])
    out = new.embed(asked, table)
    assert torch.equal(out[0, 1], new.weight[0]) and torch.equal(out[1, 0], new.weight[1])
    assert torch.equal(out[0, 0], table.weight[1])
    out.sum().backward()
    assert new.weight.grad is not None and new.weight.grad[:, 0].tolist() == [1.0, 2.0]
    assert table.weight.grad is not None
    assert table.weight.grad[[i for i in ids if i < 6]].abs().sum() == 0, "a frozen table stays as it is"
    assert torch.pdist(new.weight.detach()) > 0, "rows start different"


@pytest.mark.parametrize(("ids", "columns"), [((7, 9), 8), ((2, 9), 6), ((6, 2), 7)])
def test_logits_of_new_tokens(ids: tuple[int, ...], columns: int) -> None:
    """The first new token can be predicted: its column is its embedding's; nothing else changes."""
    torch.manual_seed(0)
    head, new = nn.Linear(4, 6, bias=False), NewTokens(ids, 1, 4)
    new.start_from(head.weight)
    assert new.weight is not None
    hidden = torch.randn(2, 3, 4)
    plain = head(hidden)
    head.register_forward_hook(new.extend_logits)
    logits = head(hidden)
    assert logits.shape[-1] == columns
    torch.testing.assert_close(logits[..., ids[0]], hidden @ new.weight[0])
    others = [column for column in range(6) if column != ids[0]]
    assert torch.equal(logits[..., others], plain[..., others])
    gaps = [column for column in range(6, columns) if column != ids[0]]
    assert (logits.softmax(-1)[..., gaps] == 0).all(), "ids that do not exist are never predicted"


def test_without_new_tokens_there_is_no_parameter() -> None:
    new = NewTokens((), 0, 4)
    assert list(new.parameters()) == []
    table = embedding()
    ids = torch.tensor([1, 5])
    assert torch.equal(new.embed(ids, table), table(ids))
    assert new.extend_logits(table, (torch.ones(4),), table.weight) is table.weight
