"""How many of something there are, in words that a reader does not stumble over."""


def counted(number: int | None, noun: str) -> str:
    """A number and its noun.

    >>> counted(1, "row"), counted(2, "row"), counted(12000, "file")
    ('1 row', '2 rows', '12,000 files')
    """
    said = str(number) if number is None else f"{number:,}"
    return f"{said} {noun}{'' if number == 1 else 's'}"
