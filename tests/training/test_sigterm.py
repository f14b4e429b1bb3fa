import contextlib
import os
import signal

import pytest

from rvllm_jax.training.sigterm import INTERRUPTED, Interrupt, closing


def test_sigterm_is_noted_while_entered_and_obeyed_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested
    assert signal.getsignal(signal.SIGTERM) is before


def full_disk():
    raise OSError("No space left")


@pytest.mark.parametrize(
    "first, raised",
    [
        (ValueError("the checkpoint"), ValueError),  # it says what happened
        (None, OSError),
        (SystemExit(INTERRUPTED), OSError),  # not all is saved: that code would be a lie
    ],
)
def test_all_is_closed_and_the_first_error_comes_out(first, raised):
    closed = []
    with pytest.raises(raised), contextlib.ExitStack() as ends:
        ends.callback(closed.append, "signal")
        ends.push(closing(lambda: closed.append("checkpoints")))
        ends.push(closing(full_disk))
        if first is not None:
            raise first
    assert closed == ["checkpoints", "signal"]
