import json

import pytest

from rvllm_jax.system.lines import JsonLines, LinesError, read_lines


def held(path):
    return [record for _, record in read_lines(path)]


@pytest.mark.parametrize("size", [10, 100_000])  # beyond what is looked at in one piece
def test_a_half_written_last_line_is_cut_off_and_the_rest_kept(tmp_path, size):
    path = tmp_path / "x.jsonl"
    with JsonLines(path) as lines:
        lines.append({"n": 1})
    with open(path, "ab") as file:
        file.write(b'{"n": 2, "text": "' + b"x" * size)
    assert held(path) == [{"n": 1}]  # also for a reader who changes nothing
    with JsonLines(path) as lines:
        assert lines.cut == size + 18
        lines.append({"n": 3})
    assert held(path) == [{"n": 1}, {"n": 3}]


def test_a_file_of_half_a_line_becomes_empty(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"n"')
    with JsonLines(path) as lines:
        assert lines.cut == 4
    assert path.read_bytes() == b""


def test_what_is_replaced_stays_with_its_writer(tmp_path):
    path = tmp_path / "x.jsonl"
    with JsonLines(path) as lines:
        lines.append({"n": 1})
        lines.append({"n": 2})
        lines.replace('{"n": 2}\n')
        assert held(path) == [{"n": 2}]
        lines.append({"n": 3})
    assert held(path) == [{"n": 2}, {"n": 3}]
    assert list(tmp_path.iterdir()) == [path]


def test_any_text_comes_back_and_nan_does_not_get_in(tmp_path):
    path = tmp_path / "x.jsonl"
    texts = ["a\nb", "ü", "\ud800", "\u2028", '"']
    with JsonLines(path) as lines:
        for text in texts:
            lines.append({"t": text})
        with pytest.raises(ValueError):
            lines.append({"t": float("nan")})
    assert [record["t"] for record in held(path)] == texts
    assert len(path.read_bytes().splitlines()) == len(texts)


@pytest.mark.parametrize(
    "line, told",
    [
        ('{"n": NaN}', "line 2.*NaN is no number"),
        ("", "line 2: not a line of JSON"),
        ('{"n": ', "line 2: not a line of JSON.*done again"),
        ("[1]", "line 2: expected an object, got list"),
    ],
)
def test_a_broken_line_within_is_named(tmp_path, line, told):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"n": 1}) + f"\n{line}\n" + json.dumps({"n": 3}) + "\n")
    with pytest.raises(LinesError, match=told):
        held(path)
    with pytest.raises(LinesError, match="cannot be read"):
        held(tmp_path / "absent")
