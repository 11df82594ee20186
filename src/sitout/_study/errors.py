"""What can go wrong in a study, as one clear line each."""


class StudyError(ValueError):
    """The study cannot run as asked: the message says what is wrong and the way out."""


class StudyInterrupted(Exception):
    """The study was stopped; what had finished is on disk."""
