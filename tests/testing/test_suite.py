"""Whatever breaks a promise is found by the check of that name, and told in one line that says what to change."""

import re

import pytest

from beni.testing import ConnectorConformance, checks, run, suite_for
from beni_plugins.connectors.mlp import Mlp
from tests.testing import broken

FOUND = [
    ("connector", "Short", "declared_counts_are_returned", "`project` and `out_grid` must agree"),
    ("connector", "Narrow", "declared_counts_are_returned", "the last dimension must be `self.out_width`"),
    ("connector", "PerCrop", "declared_counts_are_returned", "come in one dimension, crop after crop"),
    (
        "connector",
        "Mismatched",
        "tokens_stay_distinct",
        r"broken\.py:\d+\); in the connector .* `self\.in_width` is ",
    ),
    ("connector", "Mixing", "images_do_not_see_each_other", "depend on the other images"),
    ("connector", "Mixing", "packed_equals_separate", "differs by .* of its largest value"),
    ("connector", "Mixing", "images_of_other_documents_do_not_matter", "when another document's image changes"),
    ("connector", "Blind", "images_do_not_see_each_other", "do not depend on its features"),
    ("connector", "Blind", "images_of_other_documents_do_not_matter", "does not reach the text"),
    ("connector", "Detaching", "gradients_reach_every_parameter", "remove no_grad and detach"),
    ("connector", "Detaching", "gradients_reach_what_is_trained_and_nothing_else", "encoders.main.* gets no gradient"),
    ("connector", "SinglePrecision", "bf16_is_near_fp32", "tokens are torch.float32"),
    ("connector", "Asking", "its_flops_are_those_of_its_passes", r"does not run without values.*broken\.py:\d+\)"),
    ("connector", "OwnKernel", "its_flops_are_those_of_its_passes", "'beni_tests::kernel' has no formula"),
    ("connector", "Crowded", "its_flops_are_those_of_its_passes", "let the cost of an image depend on its layout"),
    ("connector", "Leftover", "gradients_reach_every_parameter", "unused gets no gradient.*leave it out"),
    ("connector", "Leftover", "a_row_without_images_sends_zero_gradients", "connector.unused.*would wait"),
    ("connector", "Leftover", "two_processes_equal_one", "connector.unused.*would wait"),
    ("connector", "Number", "parameters_can_be_sharded", r"give scale one dimension"),
    ("connector", "Forgetful", "a_saved_model_reloads", "buffer connector.shift is another after a reload"),
    ("connector", "Collapsed", "tokens_stay_distinct", "must start different"),
    ("connector", "Silent", "options_are_documented", "docstring under depth:"),
    ("connector", "Misleading", "a_refused_grid_has_an_alternative", "in favour of 3x3, which is refused too"),
    ("view", "Outside", "boxes_lie_inside_the_source", r"an image of 1x1 has a crop of \(0, 0, 2, 1\)"),
    ("view", "OffCanvas", "valid_lies_on_the_canvas", "of a canvas of 16x16"),
    ("view", "Moody", "crops_depend_on_the_size_alone", "pure function"),
    ("view", "Several", "needs_size_is_honest", "set needs_size = True"),
    ("view", "Sized", "largest_is_the_largest", "has 48 tokens, but one of 16x16, which `largest` names, has 16"),
    ("fusion", "Eager", "a_fresh_fusion_leaves_text_alone", "start its gates"),
    ("fusion", "Eager", "a_fresh_gated_fusion_leaves_its_language_model_alone", "through its gates"),
    ("fusion", "Half", "an_image_takes_all_of_its_tokens_or_no_place", "gives an image of 16 tokens 8 places"),
    ("fusion", "Deaf", "images_reach_the_text", "text behind an image does not depend on it"),
    ("encoder", "Normalising", "crops_do_not_mix", "depend on the other crops"),
    ("encoder", "Coarse", "features_are_as_described", r"features of shape .*, `describe` says"),
    ("encoder", "Dropping", "crops_do_not_mix", "leave out dropout"),
    ("encoder", "Counting", "recomputed_activations_change_nothing", "keep nothing between calls"),
    ("llm", "Lower", "texts_survive_the_tokenizer", "answers could not be compared"),
    ("source", "Twins", "ids_are_unique", "gives 2 samples 1 ids"),
    ("source", "Twins", "samples_have_an_answer", "sample 'one': its last turn must be an answer"),
    ("source", "Restarting", "streams_go_on_where_they_were", "gives other samples when it goes on behind item 1"),
    ("source", "Endless", "unknown_splits_are_none", "must return None"),
]
SMALL = {"encoder": {"size": 16, "stem": [8], "blocks": [0], "width": 8, "heads": 2, "layers": 1}}


@pytest.mark.parametrize(("kind", "name", "check", "said"), FOUND, ids=[f"{n}-{c}" for _, n, c, _ in FOUND])
def test_a_broken_promise_is_told(kind: str, name: str, check: str, said: str) -> None:
    outcome = run(suite_for(kind, getattr(broken, name), SMALL.get(kind, {})), f"test_{check}")
    assert outcome.status == "failed"
    assert re.search(said, outcome.reason), outcome.reason
    assert "\n" not in outcome.reason and outcome.check == check.replace("_", " ")


def test_what_a_part_raises_is_told_with_its_place() -> None:
    class Failing(ConnectorConformance):
        part = Mlp

        def test_it(self) -> None:
            raise IndexError("list index\nout of range")

    told = run(Failing, "test_it").reason
    assert re.fullmatch(r"IndexError: list index \(.*test_suite\.py:\d+\)", told)


def test_suites_need_no_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class can be named by itself, and options can be given."""
    from pathlib import Path

    import beni.testing

    sources = [file.read_text() for file in Path(beni.testing.__file__).parent.glob("*.py")]
    assert not any(re.search(r"^\s*(import|from) _?pytest", source, re.MULTILINE) for source in sources)
    suite = suite_for("connector", Mlp, {"kind": "linear"})
    assert suite().connector().config.layers == 1  # type: ignore[attr-defined]
    assert "test_packed_equals_separate" in checks(suite) and checks(suite)[0] == "test_options_survive_json"
