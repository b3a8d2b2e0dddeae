"""What a user of the example can mend, said in one line."""


class MistakeError(Exception):
    """An option, or what follows from it, that the training cannot work with; the text says what to change."""
