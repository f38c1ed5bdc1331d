"""Answers grow word by word, and end as those of `beni generate` do."""

import threading
from pathlib import Path

import pytest
import torch

from beni.chat.conversation import Conversation
from beni.chat.talker import Talker, names_of, open_talkers
from beni.cli.main import main
from beni.data.images import load_image
from beni.errors import ConfigError, DataError, ImageError
from beni.eval.generate import Sampling, answer_texts
from beni.sample import ImageRef
from tests.chat.small import in_file, saved, talker
from tests.model.small import A, B, E

ASKED = Conversation().ask("what is it?", [A]).answer("a cat").ask("and <image>?", [B])
GREEDY = Sampling(max_new_tokens=12)


@pytest.mark.parametrize("parts", ["inline", "xattn", "sva"])
def test_answers_grow_to_what_generate_says(parts: str) -> None:
    one = talker(parts)
    *growing, whole = one.answer(ASKED, GREEDY)
    document = one.composer.compose(ASKED.sample(), prompt_only=True)
    [wanted] = answer_texts(one.model, one.composer, [document], GREEDY)
    assert whole.text == wanted.strip()
    assert 1 <= len(growing) <= 12 and [len(each.ids) for each in growing] == list(range(1, len(growing) + 1))
    assert growing[-1].ids == whole.ids
    assert all(whole.text.startswith(each.text) for each in growing)


def test_the_terminal_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, picture = saved("xattn", tmp_path), in_file(E, tmp_path / "e.png")
    [one] = open_talkers([folder], torch.device("cpu"))
    for options, sampling in [
        ("", Sampling(max_new_tokens=8)),
        ("--temperature 3 --top-p 0.9 --seed 7", Sampling(8, 3.0, 0.9, 7)),
    ]:
        words = f"--model {folder} --image {picture.path} --max-new-tokens 8 {options}".split()
        main(["generate", *words, "--prompt", "how many?"])
        *_, said = one.answer(Conversation().ask("how many?", [picture]), sampling)
        assert capsys.readouterr().out.strip() == said.text


def test_seeds_decide_what_is_drawn() -> None:
    one = talker("inline")

    def drawn(sampling: Sampling) -> tuple[int, ...]:
        *_, said = one.answer(ASKED, sampling)
        return said.ids

    hot = Sampling(12, temperature=5.0)
    assert drawn(hot) == drawn(hot)
    assert len({drawn(Sampling(12, 5.0, seed=seed)) for seed in range(4)}) > 1
    assert drawn(Sampling(12, 5.0, top_p=1e-6)) == drawn(GREEDY), "of the likeliest alone"
    assert drawn(Sampling(12, 1e-4)) == drawn(GREEDY)
    assert drawn(Sampling(12, temperature=5, top_p=1)) == drawn(hot), "whole numbers, as a page sends them"


def test_all_words_may_be_drawn() -> None:
    """Not only the best fifty, which is what transformers looks at unless told."""
    assert Sampling(temperature=1.0).options()["top_k"] == 0
    assert Sampling().options() == {"max_new_tokens": 64, "do_sample": False}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -1.0}, "--temperature -1.0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"top_p": 0.0}, "--top-p 0.0"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_settings_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)


def test_leaving_ends_the_generation() -> None:
    one = talker("inline")
    steps: list[int] = []
    hook = one.model.llm.register_forward_pre_hook(lambda module, args: steps.append(1))
    word = torch.tensor(sorted(set(range(20)) - one.composer.template.stop_ids)[-1])
    endless = one.model.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, word, 99.0)
    )
    answer = one.answer(ASKED, Sampling(500))
    next(answer)
    answer.close()
    hook.remove()
    endless.remove()
    assert len(steps) < 400, "it would have gone on to 500"
    assert not any(thread.name.startswith("generate") for thread in threading.enumerate())


def test_errors_come_to_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    one = talker("inline")
    monkeypatch.setattr("beni.chat.talker.answer_ids", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(one.answer(ASKED, GREEDY))


def test_what_cannot_be_answered_is_told(tmp_path: Path) -> None:
    one = talker("inline")
    with pytest.raises(DataError, match=r"inline: the conversation is \d+ tokens long .* made for 8,192: start a new"):
        next(one.answer(ASKED, Sampling(9000)))
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"no\.png"):
        next(one.answer(Conversation().ask("what?", [ImageRef(path=str(tmp_path / "no.png"))]), GREEDY))


def test_models_that_cannot_be_opened(tmp_path: Path) -> None:
    device = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"^MODEL .*no saved model there"):
        open_talkers([str(tmp_path)], device)
    with pytest.raises(ConfigError, match="one model, or two side by side; these are 3"):
        open_talkers(["a", "b", "c"], device)
    with pytest.raises(ConfigError, match="MODEL and MODEL2 are both"):
        open_talkers([str(tmp_path), f"{tmp_path}/../{tmp_path.name}"], device)


def test_names_tell_models_apart() -> None:
    assert names_of(["runs/a/model", "runs/b/model"]) == ["a", "b"]
    assert names_of(["x/run/model", "y/run/model"]) == ["x/run/model", "y/run/model"]
    assert names_of(["mine"]) == ["mine"]


def test_parts_are_named() -> None:
    assert isinstance(one := talker("xattn"), Talker) and load_image(A).size
    assert one.parts == "tiny · single · perceiver · xattn · llama"
