r"""Regular expressions over module names, matched in linear time; standard library only.

An adapter's config comes from anyone, and Python's `re` backtracks: `(a+)+$` takes for ever. The keys that people write
(`layers\.[0-9]+\.mlp`, `.*(q|v)_proj`) need no backtracking, so they become a nondeterministic automaton whose sets of
states are followed one character at a time (Thompson, 1968). What needs backtracking, such as a back-reference or a
look-around, is refused by name.
"""

from collections.abc import Callable
from typing import Final

MAX_LENGTH: Final = 512
MAX_STATES: Final = 2_000
MAX_STEPS: Final = 100_000  # a usual key takes hundreds; this many hold about 4 MB

_Accepts = Callable[[str], bool]  # of one character
_CLASSES: Final[dict[str, _Accepts]] = {
    "d": str.isdecimal,
    "w": lambda character: character.isalnum() or character == "_",
    "s": str.isspace,
}
_SPECIAL: Final = frozenset("^$*+?{}[]|()\\")
_State = int
_Fragment = tuple[_State, _State]  # entry and exit


class NameRegex:
    """One pattern, matched as re.match((.*\\.)?(pattern)$, name) does, or as re.fullmatch(pattern, name) where `whole`.

    Names are printable. Raises ValueError for what it does not know.
    """

    def __init__(self, pattern: str, *, whole: bool = False) -> None:
        if len(pattern) > MAX_LENGTH:
            raise ValueError(f"it has {len(pattern)} characters, at most {MAX_LENGTH} are allowed")
        self._automaton = _Automaton()
        self._entry, self._exit = _Parser(pattern, self._automaton).parse()
        self._known: dict[tuple[frozenset[_State], str], frozenset[_State]] = {}
        self._steps, self._whole = 0, whole

    def matches(self, name: str) -> bool:
        """Tells whether the pattern matches `name`, or (unless `whole`) what stands behind a dot of it, to the end."""
        states = self._closure({self._entry}, start=True)
        for character in name:
            states = self._step(states, character)
        return self._exit in self._closure(set(states), end=True, start=not name)

    def _step(self, states: frozenset[_State], character: str) -> frozenset[_State]:
        key = (states, character)
        if key not in self._known:
            moved = {to for state in states for accepts, to in self._automaton.moves[state] if accepts(character)}
            if character == "." and not self._whole:
                moved.add(self._entry)
            self._known[key] = self._closure(moved)
        return self._known[key]

    def _closure(self, states: set[_State], *, start: bool = False, end: bool = False) -> frozenset[_State]:
        """Adds every state that is reached without a character; `^` is passed at the start, `$` at the end alone."""
        waiting, reached = list(states), set(states)
        while waiting:
            state = waiting.pop()
            self._spend()
            for anchor, to in self._automaton.skips[state]:
                if to not in reached and (not anchor or (anchor == "^" and start) or (anchor == "$" and end)):
                    reached.add(to)
                    waiting.append(to)
        return frozenset(reached)

    def _spend(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise ValueError("it takes too many steps to match: write the modules' names instead")


class _Automaton:
    """States by number: what each accepts and where it leads, and where it leads for nothing or past an anchor."""

    def __init__(self) -> None:
        self.moves: list[list[tuple[_Accepts, _State]]] = []
        self.skips: list[list[tuple[str, _State]]] = []

    def state(self) -> _State:
        if len(self.moves) == MAX_STATES:
            raise ValueError("it repeats too much: write the modules' names instead")
        self.moves.append([])
        self.skips.append([])
        return len(self.moves) - 1

    def accept(self, accepts: _Accepts) -> _Fragment:
        entry, out = self.state(), self.state()
        self.moves[entry].append((accepts, out))
        return entry, out

    def skip(self, anchor: str = "") -> _Fragment:
        entry, out = self.state(), self.state()
        self.skips[entry].append((anchor, out))
        return entry, out

    def join(self, first: _Fragment, second: _Fragment) -> _Fragment:
        self.skips[first[1]].append(("", second[0]))
        return first[0], second[1]

    def either(self, branches: list[_Fragment]) -> _Fragment:
        if len(branches) == 1:
            return branches[0]
        entry, out = self.state(), self.state()
        for branch in branches:
            self.skips[entry].append(("", branch[0]))
            self.skips[branch[1]].append(("", out))
        return entry, out

    def loop(self, body: _Fragment) -> _Fragment:
        """The body, none or many times."""
        entry, out = self.skip()
        self.skips[entry].append(("", body[0]))
        self.skips[body[1]].append(("", entry))
        return entry, out


class _Parser:
    """Reads a pattern by recursive descent: alternatives of pieces, a piece an atom with its repetition."""

    def __init__(self, pattern: str, automaton: _Automaton) -> None:
        self._pattern, self._at, self._automaton = pattern, 0, automaton

    def parse(self) -> _Fragment:
        try:
            fragment = self._alternatives()
        except RecursionError as error:
            raise ValueError("its groups are nested too deep") from error
        if self._at < len(self._pattern):
            raise ValueError("it has a ) without its (")
        return fragment

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self, expected: str = "") -> str:
        character = self._peek()
        if not character or (expected and character != expected):
            raise ValueError(f"it ends or goes on where {expected or 'a character'} is expected")
        self._at += 1
        return character

    def _alternatives(self) -> _Fragment:
        branches = [self._branch()]
        while self._peek() == "|":
            self._take()
            branches.append(self._branch())
        return self._automaton.either(branches)

    def _branch(self) -> _Fragment:
        fragment = self._automaton.skip()
        while self._peek() and self._peek() not in "|)":
            fragment = self._automaton.join(fragment, self._piece())
        return fragment

    def _piece(self) -> _Fragment:
        start = self._at
        fragment = self._atom()
        end = self._at
        counts = self._repetition()
        if counts is None:
            return fragment
        if self._pattern[start] in "^$":
            raise ValueError(f"it repeats {self._pattern[start]}")
        return self._repeated(start, end, *counts)

    def _repetition(self) -> tuple[int, int | None] | None:
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        character = self._peek()
        if character in simple and character:
            self._take()
            counts: tuple[int, int | None] = simple[character]
        elif character == "{":
            counts = self._counts()
        else:
            return None
        if self._peek() == "?":  # lazy: the same names match
            self._take()
        if self._peek() and self._peek() in "*+?{":
            raise ValueError("it repeats a repetition")
        return counts

    def _counts(self) -> tuple[int, int | None]:
        text, closed, _ = self._pattern[self._at + 1 :].partition("}")
        low, comma, high = text.partition(",")
        if not closed or not all(part.isascii() and part.isdigit() and len(part) < 4 for part in (low, high or "0")):
            raise ValueError("it has a { that starts no {count} or {least,most} below 1000")
        self._at += len(text) + 2
        most = int(low) if not comma else int(high) if high else None
        if most is not None and most < int(low):
            raise ValueError(f"it repeats at least {low} and at most {most} times")
        return int(low), most

    def _repeated(self, start: int, end: int, least: int, most: int | None) -> _Fragment:
        """The atom between `start` and `end`, read again for each time it may occur."""
        automaton, after = self._automaton, self._at
        fragment = automaton.skip()
        for _ in range(least):
            fragment = automaton.join(fragment, self._again(start))
        if most is None:
            fragment = automaton.join(fragment, automaton.loop(self._again(start)))
        for _ in range((most or least) - least):
            fragment = automaton.join(fragment, automaton.either([automaton.skip(), self._again(start)]))
        self._at = after
        assert end <= after
        return fragment

    def _again(self, start: int) -> _Fragment:
        self._at = start
        return self._atom()

    def _atom(self) -> _Fragment:
        character = self._take()
        if character == ".":
            return self._automaton.accept(lambda found: found != "\n")
        if character in "^$":
            return self._automaton.skip(character)
        if character == "(":
            return self._group()
        if character == "[":
            return self._automaton.accept(self._class())
        if character == "\\":
            return self._automaton.accept(self._escaped())
        if character in _SPECIAL:
            raise ValueError(f"it has a {character} that is neither escaped nor in its place")
        return self._automaton.accept(_one(character))

    def _group(self) -> _Fragment:
        if self._peek() == "?":
            self._take()
            if self._peek() != ":":
                raise ValueError(f"it uses (?{self._peek()}…), which is not matched here")
            self._take()
        fragment = self._alternatives()
        self._take(")")
        return fragment

    def _escaped(self) -> _Accepts:
        escaped = self._escape()
        return _one(escaped) if isinstance(escaped, str) else escaped

    def _escape(self) -> str | _Accepts:
        """What stands behind a backslash: a character, or a class of them."""
        character = self._take()
        if character.lower() in _CLASSES:
            found = _CLASSES[character.lower()]
            return found if character.islower() else _none_of([found])
        if character.isalnum():
            raise ValueError(f"it uses \\{character}, which is not matched here")
        return character

    def _class(self) -> _Accepts:
        negated = self._peek() == "^"
        if negated:
            self._take()
        found = [self._range()]
        while self._peek() != "]":
            found.append(self._range())
        self._take("]")
        return _none_of(found) if negated else _any_of(found)

    def _range(self) -> _Accepts:
        low = self._member()
        if self._peek() != "-" or self._pattern[self._at + 1 : self._at + 2] in ("]", ""):
            return _one(low) if isinstance(low, str) else low
        self._take("-")
        high = self._member()
        if not isinstance(low, str) or not isinstance(high, str) or low > high:
            raise ValueError("it has a character range that goes backwards or from a class")
        return lambda character: low <= character <= high

    def _member(self) -> str | _Accepts:
        character = self._take()
        if character == "[":
            raise ValueError("it has a [ within [ ], which is not matched here: escape it")
        return self._escape() if character == "\\" else character


def _one(expected: str) -> _Accepts:
    return lambda character: character == expected


def _any_of(members: list[_Accepts]) -> _Accepts:
    return lambda character: any(accepts(character) for accepts in members)


def _none_of(members: list[_Accepts]) -> _Accepts:
    return lambda character: not any(accepts(character) for accepts in members)
