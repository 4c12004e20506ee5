"""Addresses as messages show them."""

import re

_REST = re.compile(r"[?#]")


def shown(address: str) -> str:
    """The address without its user, its password and its query, which may hold secrets.

    `postgresql://u:sekret@host/x?password=sekret` gives `postgresql://host/x`. Where an @ behind the query's beginning
    leaves open what is a password, only the scheme is left.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "", address
    place, *query = _REST.split(rest, maxsplit=1)
    if query and "@" in query[0]:
        return f"{scheme}{separator}…"
    return scheme + separator + (place if place.startswith("/") else place.rpartition("@")[2])
