"""What a tensor may be called: what torch allows in a module's name, less what no screen or log shows as it is."""

from typing import Final

MAX_NAME: Final = 512


def name_problem(name: str) -> str | None:
    """What is wrong with a tensor's name, a clause; None where it is right: printable words joined by dots."""
    if len(name) > MAX_NAME:
        return f"has a name of {len(name)} characters, at most {MAX_NAME} are allowed"
    if not name.isprintable() or not all(name.split(".")):
        return "has a name that is not printable words joined by dots"
    return None
