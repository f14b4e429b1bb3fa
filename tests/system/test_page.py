"""Pages: templates of the package, and numbers as a person reads them."""

import subprocess
import sys
from pathlib import Path

import jinja2
import pytest

from rvllm_jax.system import page
from rvllm_jax.system.page import clock, shorten, size

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert('1')</script>&"


def test_no_text_of_a_page_is_markup():
    """Of the frame, which every page extends."""
    content = page.render("system/templates/page.html.jinja", title=EVIL)
    style = (ROOT / "rvllm_jax/system/templates/style.css").read_text()
    assert "<title>&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;</title>" in content
    assert style.strip() in content and "<script" not in content


def test_a_value_that_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="title"):
        page.render("system/templates/page.html.jinja")


def test_long_texts_are_cut_and_show_it():
    assert shorten("four", 4) == "four" and shorten("fives", 4) == "fiv…" and shorten(7, 4) == "7"


def test_numbers_are_written_as_a_person_reads_them():
    assert [clock(s) for s in (0.5, 9.72, 60, 3725)] == ["0.5 s", "9.72 s", "1:00", "1:02:05"]
    assert [size(b) for b in (12, 1500, 2.5e9)] == ["12 B", "1.5 kB", "2.5 GB"]


def test_an_installed_package_has_what_its_pages_are_made_of(tmp_path):
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    names = {
        path.relative_to(ROOT)
        for ending in ("jinja", "css")
        for path in (ROOT / "rvllm_jax").rglob(f"*.{ending}")
    }
    assert len(names) > 2 and all((tmp_path / name).is_file() for name in names)


def test_counts_below_a_million_are_whole():
    counts = {0: "0", 999: "999", 61_120: "61,120", 999_999: "999,999", 10**6: "1.0 million"}
    counts |= {6_738_415_616: "6,738.4 million"}
    assert {number: page.count(number) for number in counts} == counts
