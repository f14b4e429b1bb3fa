"""The prompt as text: every token once, and learned ones told from masked ones."""

import re

import pytest

from rvllm_jax.data.batches import dataset, prompt_view
from rvllm_jax.data.store.shards import FrameStoreError


def runs(shown: str, sign: str) -> list[str]:
    """The text of the runs of one sign."""
    lines = re.findall(rf"^    {re.escape(sign)} \|(.*)\|$", shown, re.MULTILINE)
    return [line.replace("|", "").replace("\\n", "\n") for line in lines]


@pytest.mark.parametrize("independent", [True, False])
def test_questions_are_masked_and_answers_are_learned(make, tk, examples, layout, independent):
    made = make(examples[1:2], independent_turns=independent, context=160)
    shown = prompt_view.show_sequences(made, tk, count=1)
    turns = examples[1].turns
    assert runs(shown, "=") == [f" {turn.answer}</s>" for turn in turns]
    assert runs(shown, ".") == ["<s>", "\n", *(turn.question for turn in turns)]
    assert f"<{len(layout.filled(3))} visual tokens>" in shown
    assert shown.count("question") - 1 == (3 if independent else 1)  # one in the legend
    row = made.load(*made.sequences[0], None)
    assert f", {int((row.weights > 0).sum())} learned" in shown


def test_as_many_rows_as_there_are(make, tk):
    made = make()
    assert prompt_view.show_sequences(made, tk, 2).count("\nrow ") == 2
    assert prompt_view.show_sequences(made, tk, 999).count("\nrow ") == len(made.sequences) > 2


def test_a_row_without_frames_says_so(make, tk, monkeypatch):
    def broken(*args, **how):
        raise FrameStoreError("damaged")

    monkeypatch.setattr(dataset, "load_clip", broken)
    assert "its frames cannot be read" in prompt_view.show_sequences(make(), tk, 1)
