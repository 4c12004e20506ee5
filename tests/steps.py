"""What a long task tells about itself, checked and noted."""


class Steps:
    """A Progress: checks each call, and keeps how each step ended, in their order."""

    def __init__(self) -> None:
        self.ended: dict[str, tuple[int, int, str]] = {}

    def __call__(self, what: str, done: int, total: int, unit: str) -> None:
        before, before_total, _ = self.ended.get(what, (0, total, unit))
        assert done >= (before if total == before_total else 0), f"{what} went back from {before} to {done}"
        assert not total or done <= total, f"{what} has done {done} of {total} {unit}"
        self.ended[what] = (done, total, unit)

    def unfinished(self) -> list[str]:
        """The steps of known length that did not tell their end."""
        return [what for what, (done, total, _) in self.ended.items() if done < total]
