"""Trials of what a blob store can do; everything that a trial writes is removed."""

import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.s3.probe import S3_QUESTIONS
from loratree_registry.blobs.s3.probe import trial as s3_trial
from loratree_registry.blobs.s3.store import S3BlobStore
from loratree_registry.blobs.store import BlobStore
from loratree_registry.disk.disk_errors import disk_errors, sync
from loratree_registry.disk.private import make_private
from loratree_registry.errors import Invalid, LoratreeError, fitted

_ROOM: Final = 1024**3  # bytes that should be free: some thirty adapters of 35 MB

_CONTENT: Final = b"loratree"
_REMEDY: Final = "check LORATREE_BLOBS and what it names"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Check:
    """A trial of a store: `ok` is whether the store passed it (None: unknown), `says` is one sentence about it."""

    name: str
    ok: bool | None
    says: str


def attempt(name: str, function: Callable[[], T], *, remedy: str) -> T | Check:
    """Return what `function` returns or, if it raises anything, a failed check with the reason and the remedy.

    So a check that fails ends no other check. An error of our own tells its remedy itself; `remedy` is for the others.
    """
    try:
        return function()
    except LoratreeError as error:
        says = str(error)
    except OSError as error:
        says = f"{error.filename or 'a file or a server'} cannot be used ({error.strerror or error}): {remedy}"
    except Exception as error:
        # A check that fails as nobody foresaw is a failed check too. The error's own text may hold a password.
        says = f"the check itself failed ({type(error).__name__} {_place_of(error)}): {remedy}, and report this fault"
    return Check(name, False, fitted(says))


def run_check(name: str, question: Callable[[], tuple[bool | None, str]], *, remedy: str) -> Check:
    """Return the check that `question` answers; if it raises anything, a failed check. See `attempt`."""
    answer = attempt(name, question, remedy=remedy)
    return answer if isinstance(answer, Check) else Check(name, answer[0], fitted(answer[1]))


def _place_of(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"in {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "in an unknown place"


def probe(store: BlobStore) -> list[Check]:
    """Try every operation that loratree needs of a store; if writing fails, that check is the only one.

    Raises Invalid if the store is neither a folder nor a bucket.
    """
    if isinstance(store, LocalBlobStore):
        with _begin_trial(store.root, store.setting) as folder:
            return _run(_LOCAL_QUESTIONS, folder)
    if isinstance(store, S3BlobStore):
        with s3_trial(store.bucket) as bucket:
            return _run(S3_QUESTIONS, bucket)
    raise Invalid(f"{store} cannot be checked: expected a folder or an S3 bucket")


def _run(questions: Mapping[str, Callable[[T], tuple[bool | None, str]]], tried: T) -> list[Check]:
    checks: list[Check] = []
    for name, question in questions.items():
        checks.append(run_check(name, partial(question, tried), remedy=_REMEDY))
        if not checks[0].ok:
            break
    return checks


@dataclass(frozen=True, slots=True)
class Trial:
    """A store's folder `root`, a folder `inside` it during the trial, and the setting that moves the store."""

    root: Path
    inside: Path
    setting: str


@contextmanager
def _begin_trial(root: Path, setting: str) -> Iterator[Trial]:
    """Yield a trial of `root`, and remove everything that it created."""
    absent = [path for path in (root, *root.absolute().parents) if not path.exists()]
    tried = Trial(root, root / "probe", setting)
    try:
        yield tried
    finally:
        shutil.rmtree(tried.inside, ignore_errors=True)
        with suppress(OSError):  # another process may have put something there
            for path in absent:
                if path.is_dir():
                    path.rmdir()


def _check_writable(tried: Trial) -> tuple[bool | None, str]:
    with disk_errors(tried.root, tried.setting):
        make_private(tried.root)
        tried.inside.mkdir(mode=0o700, exist_ok=True)
        (tried.inside / "file").write_bytes(_CONTENT)
        same = (tried.inside / "file").read_bytes() == _CONTENT
    return same, f"{tried.root} {'gives back what is written' if same else 'gives back other bytes: check the disk'}"


def _check_private(tried: Trial) -> tuple[bool | None, str]:
    mode = stat.S_IMODE(tried.root.stat().st_mode)
    if mode & 0o077:
        return False, f"{tried.root} has mode {mode:04o}, so others may read it: chmod 700 {tried.root}"
    return True, f"{tried.root} has mode {mode:04o}, its owner's alone"


def _check_fsync(tried: Trial) -> tuple[bool | None, str]:
    with disk_errors(tried.root, tried.setting):
        sync(tried.inside / "file")
        sync(tried.inside)
    return True, "the disk takes fsync for files and folders"


def _check_rename(tried: Trial) -> tuple[bool | None, str]:
    folders = [tried.inside, *(path for name in ("tmp", "sha256") if (path := tried.root / name).exists())]
    if len({path.stat().st_dev for path in folders}) > 1:
        return False, f"tmp and sha256 in {tried.root} are on two file systems, so no rename is atomic: mount one"
    with disk_errors(tried.root, tried.setting):
        (tried.inside / "file").replace(tried.inside / "renamed")
    return True, "a rename is atomic: temporary files and blobs are on one file system"


def _check_free_space(tried: Trial) -> tuple[bool | None, str]:
    free = shutil.disk_usage(tried.root).free
    if free < _ROOM:
        return False, f"{free / 1e9:.1f} GB are free in {tried.root}: free some space or set {tried.setting}"
    return True, f"{free / 1e9:.1f} GB are free"


_LOCAL_QUESTIONS: Final[Mapping[str, Callable[[Trial], tuple[bool | None, str]]]] = {
    "writable": _check_writable,
    "private": _check_private,
    "fsync": _check_fsync,
    "rename": _check_rename,
    "free space": _check_free_space,
}
