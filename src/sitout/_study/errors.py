"""What can go wrong in a study, as one clear line."""


class StudyError(ValueError):
    """The study cannot run as asked: the message says what is wrong and the way out."""
