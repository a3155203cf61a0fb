"""The files sent to a cluster: this package and the job, nothing else of the disk."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from udl_dist.errors import UsageError

PACKAGE = Path(__file__).parent.parent
# Code, the mark for type checkers, and the parts of report pages and model cards.
SUFFIXES = (".py", ".typed", ".css", ".js", ".jinja")
# The package itself has about 0.9 MB.
LIMIT_BYTES = 16 * 2**20
JOB_FILE = "job.toml"


@dataclass(frozen=True)
class JobPackage:
    """A folder that is sent whole."""

    folder: Path
    files: int
    bytes: int


@contextlib.contextmanager
def packed(toml: str) -> Iterator[JobPackage]:
    """The package in a private temporary folder; raises UsageError above LIMIT_BYTES."""
    with tempfile.TemporaryDirectory(prefix="udl-package-") as temporary:
        folder = Path(temporary)
        (folder / JOB_FILE).write_text(toml, encoding="utf-8")
        # Sizes first: a file of a gigabyte that lies in the package by mistake is not read.
        sizes = [len(toml.encode()), *(file.stat().st_size for file in files())]
        if sum(sizes) > LIMIT_BYTES:
            raise UsageError(
                f"package and job are {sum(sizes):,} bytes, more than {LIMIT_BYTES:,}: files"
                f" that do not belong to it lie in {PACKAGE}"
            )
        for file in files():
            # In a folder of the package's name, so that `python -m` finds it in the working
            # directory.
            target = folder / PACKAGE.name / file.relative_to(PACKAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        yield JobPackage(folder, len(sizes), sum(sizes))


def files() -> list[Path]:
    """Code and templates of the package; no links, hidden files or byte code."""
    return [
        file
        for file in sorted(PACKAGE.rglob("*"))
        if file.suffix in SUFFIXES
        and file.is_file()
        # A link may lead to any file of this disk; hidden files are where secrets lie (.env,
        # .git).
        and not file.is_symlink()
        and not any(
            part.startswith((".", "__pycache__")) for part in file.relative_to(PACKAGE).parts
        )
    ]
