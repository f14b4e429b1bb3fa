import pytest

from rvllm_jax.system.errors import RvllmError, report_errors


class RoomError(RvllmError, ValueError):
    pass


def code_of(error, *arguments, **options):
    with pytest.raises(SystemExit) as ended, report_errors(*arguments, **options):
        raise error
    return ended.value.code


def test_what_a_user_causes_is_printed_in_words():
    assert code_of(RoomError("a: is not there")) == "refused: a: is not there"
    assert code_of(RoomError("a"), "error: ") == "error: a"
    assert code_of(RoomError("a"), None) == "RoomError: a"
    assert code_of(OSError("a"), "", OSError) == "a"


def test_what_is_a_fault_of_the_program_keeps_its_traceback():
    for error in (ValueError("a"), ZeroDivisionError()):
        with pytest.raises(type(error)), report_errors():
            raise error


def test_an_interrupted_command_ends_as_shells_have_it(capsys):
    assert code_of(KeyboardInterrupt(), interrupted="stopped") == 130
    assert capsys.readouterr().err == "stopped\n"
    with pytest.raises(KeyboardInterrupt), report_errors():
        raise KeyboardInterrupt
