"""What can go wrong in a study, as one clear line."""


class StudyError(ValueError):
    """The study cannot run as asked: the message says what is wrong and the way out.

    Example:
        >>> sitout.study("wine", repeats=2)
        Traceback (most recent call last):
        ...
        sitout._study.errors.StudyError: `repeats` (--repeats) must be 8 or more. Got 2.
    """
