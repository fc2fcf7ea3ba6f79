"""One guard, broken: which text of which file becomes what, and which tests must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class DoesNotApply(Exception):
    """The text to be broken is not in its file exactly once: the product has moved on, and the table has to follow."""


@dataclass(frozen=True)
class Mutant:
    """A change that takes one guard away.

    guard: what is taken away, as a sentence. file: relative to the repository. before, after: the text and what becomes of it.
    tests: ids as pytest takes them; one of them must run and fail.
    """

    name: str
    guard: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def broken(self, root: Path) -> str:
        """The file's text with the guard gone. Raises DoesNotApply."""
        path = root / self.file
        text = path.read_text() if path.is_file() else ""
        if (found := text.count(self.before)) != 1:
            raise DoesNotApply(f"{self.name} does not apply any more: its text is in {self.file} {found} times, not once")
        return text.replace(self.before, self.after)

    def apply(self, root: Path) -> None:
        """Breaks the guard in a copy. Raises DoesNotApply."""
        text = self.broken(root)
        path = root / self.file
        path.write_text(text)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):  # it may look as if it were of the new text
            compiled.unlink()
