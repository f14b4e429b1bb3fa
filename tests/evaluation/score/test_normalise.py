import pytest

from rvllm_jax.evaluation.score.normalise import exact, normalise


@pytest.mark.parametrize(
    "prediction, truth, right",
    [
        ("red", "red", True),
        (" red\n", "red", True),
        ("red", "red ", True),
        ("Red", "red", False),
        ("red.", "red", False),
        ("dark red", "red", False),
        ("dark  red", "dark red", False),
        ("", "red", False),
    ],
)
def test_exact_forgives_outer_white_space_and_nothing_else(prediction, truth, right):
    assert exact(prediction, truth) is right


@pytest.mark.parametrize(
    "text, expected",
    [
        ("  To the LEFT. ", "to the left"),
        ("to  the\tleft", "to the left"),
        ("why?!", "why"),
        ("done .", "done"),
        ("3.5 metres", "3.5 metres"),
        ("STRASSE", normalise("straße")),
        ("...", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert normalise(normalise(text)) == expected
