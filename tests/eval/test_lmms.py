"""lmms-eval asks a saved model the same as `beni evaluate`, and gets the same answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from beni.cli.main import main
from beni.errors import BeniError, ConfigError, DataError
from beni.sample import Sample
from tests.model.small import make
from tests.model.test_saved import save

pytest.importorskip("lmms_eval", reason="needs the extra lmms-eval")
from beni.eval.lmms import BeniChat, _cut, _longest, conversation

COLOURS = ("red", "green", "blue", "white")
TASK = """\
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_messages: !function colours.messages
doc_to_visual: !function colours.visual
doc_to_text: question
doc_to_target: answer
process_results: !function colours.judge
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false}}
metric_list: [{{metric: accuracy, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """\
from PIL import Image


def messages(doc):
    content = [{"type": "image", "url": Image.open(doc["image"])}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]


def visual(doc):
    return [Image.open(doc["image"])]


def judge(doc, results):
    return {"accuracy": float(results[0].strip().lower() == doc["answer"].lower())}
"""


def test_it_gives_the_accuracy_of_evaluate(tmp_path: Path) -> None:
    """A model that never learned, and targets that are what it says to half of the questions."""
    built = make("inline")
    save(built, tmp_path / "model")
    docs = []
    for number in range(8):
        image = str(tmp_path / f"{number}.png")
        Image.new("RGB", (20, 20), COLOURS[number % 4]).save(image)
        docs.append({"image": image, "question": f"what is it? {'three cats' * (number // 4)}", "answer": "nothing"})
    lines = evaluated(tmp_path, docs)
    for number, (doc, line) in enumerate(zip(docs, lines, strict=True)):
        doc["answer"] = str(line["prediction"]) if number % 2 else "x"
    wanted = [line["correct"] for line in evaluated(tmp_path, docs)]
    assert sum(wanted) == 4
    (tmp_path / "docs.json").write_text(json.dumps(docs))
    (tmp_path / "colours.yaml").write_text(TASK.format(data=tmp_path / "docs.json"))
    (tmp_path / "colours.py").write_text(FUNCTIONS)
    command = f"-m lmms_eval --model beni --model_args pretrained={tmp_path / 'model'},device=cpu --tasks colours"
    more = f"--include_path {tmp_path} --output_path {tmp_path / 'out'} --log_samples --batch_size 2"
    done = subprocess.run(
        [sys.executable, *command.split(), *more.split()], capture_output=True, text=True, check=False
    )
    assert (tmp_path / "out").is_dir(), done.stderr[-3000:]  # its exit code says nothing
    [results] = (tmp_path / "out").rglob("*results.json")
    assert json.loads(results.read_text())["results"]["colours"]["accuracy,none"] == 0.5
    [samples] = (tmp_path / "out").rglob("*samples_colours.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    said = {each["doc_id"]: each["filtered_resps"] for each in found}
    assert [said[number] for number in range(8)] == [line["prediction"] for line in lines]


def evaluated(folder: Path, docs: list[dict[str, str]]) -> list[dict[str, object]]:
    items = [
        {
            "image": doc["image"],
            "conversations": [
                {"from": "human", "value": f"<image>\n{doc['question']}"},
                {"from": "gpt", "value": doc["answer"]},
            ],
        }
        for doc in docs
    ]
    (folder / "items.json").write_text(json.dumps(items))
    command = f"evaluate --model {folder / 'model'} --data llava:{folder / 'items.json'} --max-new-tokens 4"
    main([*command.split(), "--out", str(folder / "lines.jsonl")])
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def test_messages_become_a_conversation() -> None:
    image = Image.new("RGB", (3, 2), "red")
    text, shown = {"type": "text", "text": "which?"}, {"type": "image", "url": image}
    sample = conversation(
        [
            {"role": "system", "content": [{"type": "text", "text": "brief"}]},
            {"role": "user", "content": [shown, shown, text]},
            {"role": "assistant", "content": [{"type": "text", "text": "both"}]},
            {"role": "user", "content": [text, shown]},
        ],
        "d",
    )
    assert [turn.role for turn in sample.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.content for turn in sample.turns[1:4]] == [(0, 1, "\n", "which?"), ("both",), ("which?", 2)]
    assert len(sample.images) == 3 and isinstance(sample, Sample)
    with pytest.raises(DataError, match="'d' holds video"):
        conversation([{"role": "user", "content": [{"type": "video", "url": "x"}]}], "d")


def test_only_greedy_words_are_asked_for() -> None:
    assert _longest({"max_new_tokens": 16, "temperature": 0.0, "do_sample": False, "top_p": None, "until": ["x"]}) == 16
    assert _longest({}) == 128
    for asked in ({"temperature": 0.7}, {"repetition_penalty": 1.2}, {"num_beams": 4}):
        with pytest.raises(DataError, match=rf"\{{'{next(iter(asked))}': .*temperature=0"):
            _longest(asked)


def test_answers_end_where_the_task_says() -> None:
    assert _cut("red\n\nand blue", ["\n\n", ""]) == "red" and _cut("red", None) == "red" and _cut("a. b", ".") == "a"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"fps": 2}, "not fps"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES chooses"),
        ({}, "pretrained .*no saved model there"),
    ],
)
def test_mistakes_are_told(arguments: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(BeniError, match=said) as caught:
        BeniChat(pretrained=str(tmp_path), **arguments)
    assert isinstance(caught.value, ConfigError)
