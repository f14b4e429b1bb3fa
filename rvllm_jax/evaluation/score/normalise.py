"""When an answer counts as right."""

_TRAILING = ".,;:!?"


def exact(prediction: str, truth: str) -> bool:
    """Whether `prediction` is `truth`, character by character, but for white space around them.

    >>> exact(" red ", "red"), exact("Red", "red"), exact("red.", "red")
    (True, False, False)
    """
    return prediction.strip() == truth.strip()


def normalise(text: str) -> str:
    """`text` without outer white space, case and trailing punctuation; inner space made single.

    For comparison with answers that other people wrote; `exact` does not use it.

    >>> normalise("  Left to  RIGHT. ")
    'left to right'
    """
    return " ".join(text.casefold().split()).rstrip(_TRAILING).rstrip()
