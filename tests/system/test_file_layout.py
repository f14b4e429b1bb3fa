"""Numbers of layouts: what is older is read, what is newer or gone is refused in words."""

import pytest

from rvllm_jax.system.file_layout import FileLayout, LayoutError

LAYOUT = FileLayout("a thing", 3, unread={1: "0951cbe of 2026-11-28"})


def test_a_file_is_stamped_with_the_number_of_today_and_read():
    content = LAYOUT.stamp({"layout_number": 2, "key": "value"})
    assert content == {"layout_number": 3, "key": "value"}
    LAYOUT.check("x.json", content)
    LAYOUT.check("x.json", {"layout_number": 2})
    FileLayout("a thing", 1).check("x.json", {"no": "number"})  # before there were numbers


def test_what_is_not_read_names_the_file_the_layout_and_the_version_that_reads_it():
    newer = "^x.json: a thing of layout 4, made by a newer version of rvllm_jax; .* up to 3[.]"
    with pytest.raises(LayoutError, match=newer):
        LAYOUT.check("x.json", {"layout_number": 4})
    older = "^x.json: a thing of layout 1, .* not read any more; 0951cbe of 2026-11-28 does$"
    for content in ({"layout_number": 1}, {}):
        with pytest.raises(LayoutError, match=older):
            LAYOUT.check("x.json", content)


@pytest.mark.parametrize("number", ["2", True, 0, None, 1.5])
def test_a_number_that_is_none_is_refused(number):
    with pytest.raises(LayoutError, match="^x.json: its layout_number is .*restore the file"):
        LAYOUT.check("x.json", {"layout_number": number})
