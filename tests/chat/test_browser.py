"""The page in a browser: pictures go in, answers come out, and it fits on a telephone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

from beni.chat.page import serve  # noqa: E402
from tests.chat.small import in_file, talker  # noqa: E402
from tests.model.small import A, B  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")]
WAIT_MS = 60_000


@pytest.fixture
def window() -> Iterator[Any]:
    """A page of two models in a window of a computer's size, and the addresses elsewhere that it asks for."""
    blocks = serve([talker("xattn"), talker("inline")], "127.0.0.1", 0, share=False, wait=False)
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.elsewhere = []
        page.on("request", lambda asked: None if "127.0.0.1" in asked.url else page.elsewhere.append(asked.url))
        page.goto(blocks.local_url)
        page.wait_for_selector("textarea")
        yield page
        browser.close()
    blocks.close()


def test_a_question_about_two_pictures(window: Any, tmp_path: Path) -> None:
    paths = [in_file(ref, tmp_path / f"{n}.png").path for n, ref in enumerate((A, B))]
    window.set_input_files("input[type=file]", paths)
    window.wait_for_selector(".thumbnail-item, .thumbnails img, .thumbnail-image", timeout=WAIT_MS)
    window.fill("textarea", "what is it?")
    window.keyboard.press("Enter")
    window.wait_for_function("document.querySelectorAll('.maps img').length == 4", timeout=WAIT_MS)
    assert window.input_value("textarea") == ""
    assert window.locator(".chat .bot").count() >= 2
    for width in (1280, 400):
        window.set_viewport_size({"width": width, "height": 900})
        assert window.evaluate("document.documentElement.scrollWidth") <= width, "nothing is wider than the window"
    assert not [url for url in window.elsewhere if url.startswith("http")], "nothing is fetched from elsewhere"
    window.get_by_text("New conversation").click()
    window.wait_for_function("document.querySelectorAll('.maps img').length == 0", timeout=WAIT_MS)


def test_a_refused_question_is_beside_the_talk(window: Any) -> None:
    said = "[...document.querySelectorAll('.chat')].every(chat => chat.innerText.includes('hello there'))"
    window.fill("textarea", "hello there")
    window.keyboard.press("Enter")
    window.wait_for_function(said, timeout=WAIT_MS)
    window.wait_for_selector(".submit-button", timeout=WAIT_MS)
    window.fill("textarea", "what is <image>?")
    window.keyboard.press("Enter")
    window.get_by_text("1 <image> mark but 0 pictures").wait_for(timeout=WAIT_MS)
    window.wait_for_selector(".submit-button", timeout=WAIT_MS)
    assert window.input_value("textarea") == "what is <image>?"
    assert window.evaluate(said) and not window.locator(".chat .error").count()


def test_an_answer_is_stopped(window: Any) -> None:
    """What was said until then stays, and the next question is answered."""
    window.get_by_text("How words are chosen").click()
    for label, value in (("Temperature", 2), ("Longest answer", 1000)):
        window.get_by_label(f"number input for {label}").fill(str(value))
        window.keyboard.press("Tab")
    window.fill("textarea", "hello there")
    window.keyboard.press("Enter")
    window.wait_for_selector(".stop-button", timeout=WAIT_MS)
    window.wait_for_selector(".chat .bot", timeout=WAIT_MS)
    window.click(".stop-button")
    window.wait_for_selector(".submit-button", timeout=WAIT_MS)
    window.get_by_label("number input for Longest answer").fill("3")
    window.keyboard.press("Tab")
    window.fill("textarea", "how many?")
    window.keyboard.press("Enter")
    said = "[...document.querySelectorAll('.chat')].every(chat => chat.innerText.includes('how many?'))"
    window.wait_for_function(said, timeout=WAIT_MS)
    window.wait_for_selector(".submit-button", timeout=WAIT_MS)
    assert window.input_value("textarea") == "", "the box is empty behind the second question, too"
