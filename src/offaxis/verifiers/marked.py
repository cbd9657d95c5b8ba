"""Where a completion's final answer stands: behind a marker, once (`...#33`)."""

__all__ = ["marked_answer"]


def marked_answer(completion: str, *, marker: str = "#") -> str | None:
    """What follows `marker`, up to the end, blanks stripped, or None where there is no answer.

    A completion with no marker, or with more than one (hedging), or with nothing behind it, gives
    no answer. Any string is accepted; nothing is raised.
    """
    pieces = completion.split(marker)
    if len(pieces) != 2:
        return None
    return pieces[1].strip() or None
