"""Text comes as early as it is certain; all of it together is the text of the answer."""

import random

import pytest

from rvllm_jax.data.text.tokenizer import train
from rvllm_jax.generation.streaming import TextStream, cut_ids, read_ids, text_of

TOKENIZER = train(["the red circle moves to the left and then up"] * 3, 300)  # of ASCII letters


def pieces(text: str, stop=()) -> tuple[list[str], TextStream]:
    stream = TextStream(TOKENIZER.decode, stop)
    given = [stream.add(token) for token in TOKENIZER.encode(text)]
    return [*given, stream.finish()], stream


def test_characters_of_several_bytes_come_whole():
    text = "é 赤 🙂 a👩‍👩‍👧z"
    given, stream = pieces(text)
    assert len(TOKENIZER.encode("🙂")) == 4
    assert "".join(given) == text == stream.text
    assert not any("\ufffd" in piece for piece in given)
    assert given[:2] == ["", "é"]  # as soon as its second byte is there


def test_random_text_streams_as_it_decodes():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(chr(rng.choice([97, 32, 233, 0x8D64, 0x1F642])) for _ in range(9))
        assert "".join(pieces(text)[0]) == text


def test_bytes_that_are_no_character_come_when_nothing_can_mend_them():
    byte = TOKENIZER.encode("赤")
    stream = TextStream(TOKENIZER.decode)
    assert [stream.add(token) for token in byte[:2]] == ["", ""]
    assert stream.add(TOKENIZER.encode("t")[0]) == "\ufffd\ufffdt"
    assert stream.add(byte[0]) == "" and stream.finish() == "\ufffd"


@pytest.mark.parametrize("stop", ["circle", " moves to", "赤", "d c", "🙂🙂"])
def test_a_stop_string_ends_the_text_and_nothing_of_it_is_shown(stop):
    text = "the red circle moves to 赤 and 🙂🙂 up"
    given, stream = pieces(text, [stop, "never there"])
    expected = text[: text.index(stop)]
    assert "".join(given) == expected == stream.text and stream.stopped
    shown = ""
    for piece in given:
        shown += piece
        assert expected.startswith(shown)
    assert stream.add(TOKENIZER.encode("t")[0]) == stream.finish() == ""


def test_the_first_of_several_stop_strings_counts():
    assert pieces("the red circle", ["circle", "red", "d c"])[1].text == "the "
    assert len(TOKENIZER.encode(" the")) == 1  # which brings both at once
    assert pieces("red the", ["e", "h"])[1].text == "r"
    assert pieces(" the", ["e", "h"])[1].text == " t"


def test_the_beginning_of_a_stop_string_comes_when_another_word_follows():
    stream = TextStream(TOKENIZER.decode, ["left\n"])
    given = [stream.add(token) for token in TOKENIZER.encode("to the left")]
    assert "left" not in "".join(given)
    assert "".join(stream.add(token) for token in TOKENIZER.encode(" and")) == "left and"
    given, stream = pieces("the left", ["left\n"])
    assert given[-1] == "left" and not stream.stopped


def test_cut_ids_keep_all_that_do_not_go_beyond_the_text():
    ids = TOKENIZER.encode("the red circle")
    for text in ("the red circle", "the red cir", "the", "", "赤"):
        cut = cut_ids(TOKENIZER, ids, text)
        assert text_of(TOKENIZER.decode, cut) == text
        fit = [n for n in range(len(ids) + 1) if text.startswith(TOKENIZER.decode(ids[:n]))]
        assert cut[: fit[-1]] == ids[: fit[-1]]


def test_an_answer_read_at_once_is_the_text_of_its_stream():
    """Also where the model writes half a character, and where a stop text ends it."""
    ids = TOKENIZER.encode("the red é 赤")
    for part in (ids, ids[:-1], [*ids[:-1], *ids]):
        assert read_ids(TOKENIZER, part) == (text_of(TOKENIZER.decode, part), part)
    text, cut = read_ids(TOKENIZER, ids, stop=["d é"])
    assert text == "the re" == text_of(TOKENIZER.decode, cut)
