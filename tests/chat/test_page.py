"""The page, driven as a browser drives it; without Gradio these tests are skipped."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

gradio = pytest.importorskip("gradio")
client_of = pytest.importorskip("gradio_client")

from beni.chat.conversation import Conversation  # noqa: E402
from beni.chat.page import maps, messages, serve  # noqa: E402
from beni.chat.sight import look  # noqa: E402
from beni.chat.talker import Talker  # noqa: E402
from beni.eval.generate import Sampling  # noqa: E402
from tests.chat.small import in_file, talker  # noqa: E402
from tests.model.small import A, B  # noqa: E402

SETTINGS = (0, 1, 6, 0)
"""Temperature, top p, longest answer, seed."""


@pytest.fixture(scope="module")
def talkers() -> list[Talker]:
    return [talker("xattn"), talker("inline")]


@pytest.fixture(scope="module")
def url(talkers: list[Talker]) -> Iterator[str]:
    blocks = serve(talkers, "127.0.0.1", 0, share=False, wait=False)
    yield blocks.local_url
    blocks.close()


@pytest.fixture
def client(url: str) -> Any:
    """A visitor of its own."""
    return client_of.Client(url, verbose=False)


def question(text: str, *pictures: str) -> dict[str, Any]:
    return {"text": text, "files": [client_of.handle_file(path) for path in pictures]}


def said(chat: Any) -> list[tuple[str, str]]:
    """Role and text of each message; pictures by their type."""
    found = []
    for message in chat:
        for part in message["content"] if isinstance(message["content"], list) else [message["content"]]:
            found.append(
                (message["role"], part if isinstance(part, str) else part.get("text", part.get("type", "file")))
            )
    return found


def answer(one: Talker, asked: Conversation, words: int = 6) -> str:
    *_, whole = one.answer(asked, Sampling(words))
    return whole.text


def test_two_models_answer_the_same_questions(client: Any, talkers: list[Talker], tmp_path: Path) -> None:
    picture = in_file(A, tmp_path / "a.png")
    job = client.submit(question("what is it?", picture.path), *SETTINGS, api_name="/ask")
    job.result()
    grown = [len(said(out[1])[-1][1]) for out in job.outputs()[1:] if len(said(out[1])) == 3]
    assert grown == sorted(grown) and len(set(grown)) > 2, "it is shown as it grows"
    second = client.predict(question("how many?"), *SETTINGS, api_name="/ask")
    for number, one in enumerate(talkers):
        asked = Conversation().ask("what is it?", [picture])
        first = answer(one, asked)
        then = answer(one, asked.answer(first).ask("how many?"))
        shown = said(second[1 + 5 * number])
        assert [text for role, text in shown if role == "assistant"] == [first or "(nothing)", then or "(nothing)"]
        assert [role for role, _ in shown] == ["user", "user", "assistant", "user", "assistant"]
        assert shown[1][1] == "what is it?" and shown[3][1] == "how many?"
        assert "<img" in second[2 + 5 * number], "a heat map of the last answer"


def test_the_menus_choose_the_weights(client: Any, talkers: list[Talker], tmp_path: Path) -> None:
    picture = in_file(A, tmp_path / "a.png")
    client.predict(question("what is it?", picture.path), *SETTINGS, api_name="/ask")
    asked = Conversation().ask("what is it?", [picture])
    *_, whole = talkers[0].answer(asked, Sampling(6))
    looks = look(talkers[0], asked, whole)
    for sight, layer, word in [(0, -1, -1), (0, 1, 2), (1, -1, -1)]:
        *_, found = client.predict(sight, layer, word, api_name="/look")
        assert found == maps(looks, sight, layer, word)
    assert maps(looks, 0, 1, 2) != maps(looks, 0, 0, 2) != maps(looks, 0, 0, 1)
    assert len(re.findall("<img", maps(looks))) == 1


def test_a_new_conversation_has_forgotten_the_old(client: Any, talkers: list[Talker], tmp_path: Path) -> None:
    client.predict(question("what?", in_file(B, tmp_path / "b.png").path), *SETTINGS, api_name="/ask")
    assert client.predict(api_name="/new")[1] == []
    out = client.predict(question("hello there"), *SETTINGS, api_name="/ask")
    assert said(out[1])[1] == ("assistant", answer(talkers[0], Conversation().ask("hello there")) or "(nothing)")
    assert "no picture" in out[2]


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page has warned of."""
    texts: list[str] = []
    monkeypatch.setattr(gradio, "Warning", lambda text, **_: texts.append(text))
    return texts


def test_a_refused_question_is_told_beside_the_talk_and_stays_in_the_box(
    client: Any, talkers: list[Talker], warned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = client.predict(question("hello there"), *SETTINGS, api_name="/ask")
    picture = in_file(A, tmp_path / "a.png").path
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\nno")

    def refused(message: dict[str, Any], wanted: str) -> None:
        shown = client.predict(message, *SETTINGS, api_name="/ask")
        assert re.fullmatch(wanted, warned.pop()) and not warned
        box = shown[0]["value"]
        assert box["text"] == message["text"] and len(box["files"]) == len(message["files"])
        assert shown[0]["submit_btn"] is True, "it can be mended and asked"
        assert [said(shown[1 + 5 * number]) for number in range(2)] == [said(before[1]), said(before[6])]

    refused(question(" "), "there is no question: .*")
    refused(question("what?", str(tmp_path / "no.png")), "image no.png (is not in any image format|cannot be read).*")
    refused(
        question("<image> or <image>?", picture),
        "the question has 2 &lt;image&gt; marks but 1 picture: write a mark .*",
    )
    refused(question("<image>"), "the question has 1 &lt;image&gt; mark but 0 pictures: .*")
    with monkeypatch.context() as patch:
        patch.setattr(talkers[1].model.llm.config, "max_position_embeddings", 20)
        refused(question("more"), "inline: the conversation is .* made for 20: start.*")
    after = client.predict(question("hello there"), *SETTINGS, api_name="/ask")
    assert said(after[1])[:2] == said(before[1]) and len(said(after[1])) == 4


def test_visitors_do_not_see_each_other(url: str, client: Any) -> None:
    client.predict(question("hello there"), *SETTINGS, api_name="/ask")
    other = client_of.Client(url, verbose=False)
    assert len(said(other.predict(question("how many?"), *SETTINGS, api_name="/ask")[1])) == 2


def test_what_is_said_is_shown_as_it_is(tmp_path: Path) -> None:
    """Pictures in their places, and empty answers as such."""
    picture = in_file(A, tmp_path / "a.png")
    found = messages(Conversation().ask("see <image> this", [picture]).answer(""))
    assert [message["content"] for message in found] == [
        "see",
        {"path": picture.path, "alt_text": "picture 1"},
        "this",
        "(nothing)",
    ]
