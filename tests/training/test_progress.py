import io

from rvllm_jax.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_off_a_terminal_prints_lines_now_and_then():
    file = io.StringIO()
    with Progress("adamw", total=100, initial=90, batch=8, file=file, every=3600) as progress:
        for step in range(5):
            progress.update(loss=step / 2)
        assert file.getvalue() == ""
    (line,) = file.getvalue().splitlines()
    assert line.startswith("adamw  step 95/100, loss 2.0000, ")
    for part in ("clips/s", " left", "GiB"):
        assert part in line
    file = io.StringIO()
    with Progress("adamw", total=100, file=file, every=0) as progress:
        progress.update(loss=0.5)
        progress.update()
        assert len(file.getvalue().splitlines()) == 2
        assert "step 2/100, loss 0.5000" in file.getvalue()
    assert len(file.getvalue().splitlines()) == 2  # the end was told already


def test_progress_of_a_stage_that_is_done_prints_nothing():
    file = io.StringIO()
    with Progress("sgd", total=10, initial=10, file=file):
        pass
    assert file.getvalue() == ""


def test_progress_counts_clips_of_this_process_only(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    file = io.StringIO()
    with Progress("sgd", total=100, initial=40, batch=8, file=file, every=5) as progress:
        now[0] += 4
        progress.update(20, loss=1.0)
    assert "step 60/100, loss 1.0000, 40.0 clips/s, 00:08 left" in file.getvalue()


def test_progress_on_a_terminal_is_a_bar():
    file = Terminal()
    with Progress("adamw", total=4, file=file) as progress:
        for _ in range(4):
            progress.update(loss=0.25)
    assert file.getvalue().count("\n") == 1
    last = file.getvalue().split("\r")[-1]
    assert "adamw 100%" in last
    assert "4/4" in last
    assert "loss 0.2500" in last
    assert "clips/s" in last
