"""The page: what is typed goes to a `Session`, and what comes of it is shown.

Needs Gradio (the extra `demo`).
"""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from beni.chat.conversation import Conversation
from beni.chat.drawing import LONGEST_SIDE, legend, overlays
from beni.chat.session import Session
from beni.chat.sight import Looks, Sight
from beni.chat.talker import Talker
from beni.errors import BeniError
from beni.eval.generate import Sampling
from beni.report.pictures import embed
from beni.sample import ImageRef
from beni.types import Size

ALL_LAYERS, ALL_WORDS = -1, -1
"""Choices of the menus: the mean of all."""
TURN = "models"
"""Of all events that compute: one at a time."""
DEFAULT = Sampling()
Update = dict[Any, Any]


class Column(NamedTuple):
    """What the page shows of one model."""

    chat: gr.Chatbot
    map: gr.HTML
    sight: gr.Dropdown
    layer: gr.Dropdown
    word: gr.Dropdown


def page(talkers: Sequence[Talker]) -> gr.Blocks:
    """The page of one model, or of two side by side."""
    with gr.Blocks(title=" and ".join(talker.name for talker in talkers), analytics_enabled=False) as blocks:
        session = gr.State(Session.of(talkers))
        alone = len(talkers) == 1
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                with gr.Row():
                    chats = [_chat(talker) for talker in talkers]
                box = gr.MultimodalTextbox(
                    file_types=["image"],
                    file_count="multiple",
                    placeholder="Ask, and add pictures",
                    show_label=False,
                    autofocus=True,
                )
                with gr.Accordion("How words are chosen", open=False), gr.Row():
                    temperature = gr.Slider(
                        0, 2, DEFAULT.temperature, step=0.05, label="Temperature", info="0: the likeliest"
                    )
                    top_p = gr.Slider(0.05, 1, DEFAULT.top_p, step=0.05, label="Top p", info="1: from all words")
                    longest = gr.Slider(
                        1, 1024, DEFAULT.max_new_tokens, step=1, label="Longest answer", info="in tokens"
                    )
                    seed = gr.Number(DEFAULT.seed, precision=0, minimum=0, label="Seed", info="of what is drawn")
                again = gr.Button("New conversation", variant="secondary", size="sm", elem_classes="again")
            looking = gr.Column(scale=2, min_width=320) if alone else None  # beside the talk; of two models below it
        with looking or gr.Row():
            columns = [_column(talker, chat, alone) for talker, chat in zip(talkers, chats, strict=True)]
        shown = [part for column in columns for part in column]

        def ask(
            message: dict[str, Any], before: Session, temperature: float, top_p: float, longest: float, seed: float
        ) -> Iterator[Update]:
            """A question with its pictures to every model; answers come word by word."""
            now = before
            try:
                sampling = Sampling(int(longest), temperature, top_p, int(seed or 0))
                images = [ImageRef(path=path) for path in message.get("files") or ()]
                for now in before.ask(talkers, message.get("text") or "", images, sampling):
                    yield {session: now, **_show(now, columns)}
                yield {box: _READY, session: now, **_show(now, columns)}
            except BeniError as error:
                # an error of Gradio's would be drawn over the whole talk
                gr.Warning(html.escape(_as_named(str(error), message)), duration=None)
                yield {box: _READY | {"value": message}, session: before, **_show(before, columns)}

        sent = gr.MultimodalTextbox(visible=False)
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        taken = box.submit(lambda message: (message, _BUSY), box, [sent, box], **quick)
        emptied = taken.then(lambda: _EMPTY, None, box, **quick)  # not with the buttons: then it stays as it is
        asked = emptied.then(
            ask,
            [sent, session, temperature, top_p, longest, seed],
            [box, session, *shown],
            api_name="ask",
            concurrency_id=TURN,
            concurrency_limit=1,
            show_progress="hidden",
        )
        box.stop(lambda: _READY, None, box, cancels=asked, api_visibility="private")

        def begin() -> Update:
            """Forget what was said."""
            new = Session.of(talkers)
            return {box: _READY, session: new, **_show(new, columns)}

        again.click(begin, None, [box, session, *shown], api_name="new", cancels=asked, show_progress="hidden")
        for number, column in enumerate(columns):
            menus = [column.sight, column.layer, column.word]
            gr.on(
                [menu.input for menu in menus],
                _look_again(number),
                [session, *menus],
                [column.layer, column.word, column.map],
                api_name="look" if number == 0 else f"look_{number + 1}",
                show_progress="hidden",
            )
    return blocks


def serve(talkers: Sequence[Talker], host: str, port: int, share: bool, wait: bool = True) -> gr.Blocks:
    """Show the page at an address.

    Args:
        talkers: one or two.
        host: the address; 127.0.0.1 is this machine alone.
        port: 0: the first free one from 7860 on.
        share: also let Gradio's servers hand it on, to everybody who knows the link.
        wait: until somebody ends the program; else the page is closed by `blocks.close()`.
    """
    blocks = page(talkers)
    _, url, link = blocks.queue(default_concurrency_limit=1).launch(
        server_name=host,
        server_port=port or None,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        theme=_theme(),
        css=files("beni.chat").joinpath("page.css").read_text(encoding="utf-8"),
        ssr_mode=False,
    )
    if wait:
        print("\n".join(filter(None, [url, link])), flush=True)
        blocks.block_thread()
    return blocks


def _theme() -> gr.themes.Base:
    """Fonts of the reader's own machine: nothing is fetched."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def _chat(talker: Talker) -> gr.Chatbot:
    with gr.Column(min_width=320):
        gr.HTML(f"<h2>{html.escape(talker.name)}</h2><p>{html.escape(talker.parts)}</p>", elem_classes="about")
        return gr.Chatbot(
            show_label=False,
            height=None,
            min_height=140,
            max_height=420,
            buttons=[],
            render_markdown=False,
            placeholder="Nothing was said yet.",
            elem_classes="chat",
        )


def _column(talker: Talker, chat: gr.Chatbot, alone: bool) -> Column:
    with gr.Column(min_width=320, elem_classes="where"):
        gr.HTML("<h3>Where it looks</h3>" if alone else f"<h3>Where {html.escape(talker.name)} looks</h3>")
        sight = gr.Dropdown([], label="Weights", visible=False)
        with gr.Row():
            layer = gr.Dropdown([], label="Layer", visible=False, min_width=130)
            word = gr.Dropdown([], label="Word", visible=False, min_width=130)
        found = gr.HTML(elem_classes="maps", value=_NO_MAP)
    return Column(chat, found, sight, layer, word)


_NO_MAP = "<p class='note'>A heat map over the pictures, when it has answered.</p>"
_EMPTY = {"text": "", "files": []}
_BUSY = gr.update(submit_btn=False, stop_btn=True)
_READY = gr.update(submit_btn=True, stop_btn=False)
"""The box of the question, while models answer and when they have."""


def _show(session: Session, columns: Sequence[Column]) -> Update:
    """All columns as a session has them."""
    update: Update = {}
    for side, column in zip(session.sides, columns, strict=True):
        looks = side.looks
        first = looks.sights[0] if looks.sights else None
        update |= {
            column.chat: messages(side.said),
            column.map: maps(looks) if side.said.turns else _NO_MAP,
            column.sight: gr.Dropdown(
                [(sight.name, number) for number, sight in enumerate(looks.sights)],
                value=0 if first else None,
                visible=first is not None,
            ),
            column.layer: _layers(first),
            column.word: _words(first, looks.words),
        }
    return update


def _layers(sight: Sight | None, value: int = ALL_LAYERS) -> gr.Dropdown:
    count = len(sight.weights_LAS) if sight else 0
    choices = [("mean", ALL_LAYERS), *((str(n + 1), n) for n in range(count))]
    return gr.Dropdown(choices, value=min(value, count - 1), visible=count > 1)


def _words(sight: Sight | None, words: Sequence[str], value: int = ALL_WORDS) -> gr.Dropdown:
    """A word may come twice: it is told by its number."""
    choices = [("all", ALL_WORDS), *((f"{n + 1}  {word}", n) for n, word in enumerate(words))]
    return gr.Dropdown(choices, value=value, visible=sight is not None and sight.by_word)


def _look_again(number: int) -> Callable[..., tuple[Any, ...]]:
    def look(session: Session, sight: int, layer: int, word: int) -> tuple[Any, ...]:
        """Heat maps of the last answer, for one kind of weights, a layer (-1: their mean), and a word (-1: all)."""
        looks = session.sides[number].looks
        if not looks.sights:
            return gr.skip(), gr.skip(), maps(looks)
        chosen = looks.sights[sight or 0]
        layer = ALL_LAYERS if layer is None or layer >= len(chosen.weights_LAS) else layer
        word = ALL_WORDS if word is None or word >= len(looks.words) else word
        return _layers(chosen, layer), _words(chosen, looks.words, word), maps(looks, sight or 0, layer, word)

    return look


def _as_named(text: str, message: Mapping[str, Any]) -> str:
    """Pictures as the reader knows them: without the folders in which Gradio keeps them."""
    for path in message.get("files") or ():
        text = text.replace(path, Path(path).name)
    return text


def messages(said: Conversation) -> list[dict[str, Any]]:
    """A conversation as Gradio wants it: pictures, and texts, each by itself."""
    found = []
    for turn in said.turns:
        for part in turn.content:
            if isinstance(part, int):
                content: Any = {"path": said.images[part].path, "alt_text": f"picture {part + 1}"}
            elif part.strip() or turn.role == "assistant":
                content = part.strip() or "(nothing)"
            else:
                continue  # the line between a picture and the question
            found.append({"role": turn.role, "content": content})
    return found


def maps(looks: Looks, sight: int = 0, layer: int = ALL_LAYERS, word: int = ALL_WORDS) -> str:
    """Heat maps of all pictures, with what part of the weight lies on each."""
    if not looks.sights:
        return f"<p class='note'>{html.escape(looks.why_none)}</p>" if looks.why_none else ""
    chosen = looks.sights[sight]
    heats = [
        chosen.heat(
            number,
            Size(*picture.size),
            None if layer == ALL_LAYERS else layer,
            None if word == ALL_WORDS else word,
        )
        for number, picture in enumerate(looks.pictures)
    ]
    figures = []
    overlaid, times = overlays(looks.pictures, heats)
    for number, (drawn, heat) in enumerate(zip(overlaid, heats, strict=True), start=1):
        name = f"picture {number}" if len(heats) > 1 else "the picture"
        told = f"{heat.sum():.0%} of the weight on {name}"
        image = f"<img src='{embed(drawn, LONGEST_SIDE).uri}' alt='heat map: {told}'>"
        figures.append(f"<figure>{image}<figcaption>{told}</figcaption></figure>")
    rest = max(0.0, 1 - sum(float(heat.sum()) for heat in heats))
    scale = f"<i style='background: {legend()}'></i>"
    shown = f"over the picture in grey: none {scale} {times:.1f} times an even look"
    note = f"<p class='note'>{shown}; {rest:.0%} of the weight elsewhere</p>"
    return f"<div class='figures'>{''.join(figures)}</div>{note}"
