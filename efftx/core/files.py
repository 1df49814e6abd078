"""Files that are wholly there or not at all, also after a kill or a power cut; and reading that never hangs."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path

from efftx.errors import UserError

_TEMPORARY = "tmp"
_OTHER_RUN = "set run_dir= or EFFTX_RUNS to another place"


class DamagedFileError(UserError):
    """A file that is not what efftx wrote; `path` says which, `why` what is wrong with it."""

    def __init__(self, path: Path, why: str, hint: str = "") -> None:
        super().__init__("damaged_file", f"{path} is damaged: {why}.", hint)
        self.path, self.why = path, why


# ---- writing ---------------------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: a reader, or a kill, sees the old bytes or the new ones, never a mixture.

    Raises OSError: with the old bytes there and no temporary file left where writing or replacing failed, with the new
    ones where the folder could not be synced afterwards, so that a power cut may still bring the old ones back. What a
    kill leaves beside the file, `sweep` removes.
    """
    with placed(path) as file:
        file.write(data)


@contextmanager
def placed(path: Path) -> Iterator[BufferedWriter]:
    """A file to write that is at `path` once it is whole, as `write_atomically`; an error leaves what was there."""
    with _temporary(path) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)
    sync(path.parent)


@contextmanager
def _temporary(path: Path) -> Iterator[BufferedWriter]:
    """A new file beside `path`, under a lock that lasts as long as its writer lives: `sweep` leaves it alone.

    An error removes it.
    """
    while True:
        name = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{_TEMPORARY}")
        try:
            with open(name, "xb") as file:
                if _is_mine(file.fileno()):
                    yield file
                    return
        except BaseException:
            name.unlink(missing_ok=True)
            raise


def _is_mine(descriptor: int) -> bool:
    """Locks a new file; False where a sweep took it for a dead writer's before that, and has removed it or will."""
    try:
        _lock(descriptor)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks, where nothing is swept
    return os.fstat(descriptor).st_nlink > 0


def _lock(descriptor: int) -> None:
    """BlockingIOError where another has the lock, another OSError where the file system knows no locks."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed writers left in `folder`; a living writer's stay."""
    with suppress(OSError):  # a folder that is not there, or is only to be read, has nothing to sweep
        for path in folder.glob(f".*.{_TEMPORARY}"):
            with suppress(OSError, DamagedFileError), _open_regular(path, os.O_NOFOLLOW) as file:
                _lock(file.fileno())
                path.unlink()


@contextmanager
def writing(path: Path, elsewhere: str = _OTHER_RUN) -> Iterator[None]:
    """Turn an OSError met while writing under `path` (disk full, read-only, no such place) into a UserError."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error, elsewhere) from error


def write_error(path: Path, error: Exception, elsewhere: str = _OTHER_RUN) -> UserError:
    """The one message for a file that cannot be written, with the hint that fits the cause."""
    code = error.errno if isinstance(error, OSError) else None
    text = os.strerror(code) if code else str(error)
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text:
        hint = f"Free some space, or {elsewhere}; then give the same command again."
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = f"Make it writable, or {elsewhere}."
    else:
        hint = f"Check the path, or {elsewhere}."
    return UserError("cannot_write", f"cannot write under {path}: {text}.", hint)


def place_of(key: str, given: str) -> Path:
    """The file that a user asks to be written by `key=given`, `~` being home; makes its folder.

    UserError where that is a folder, or where nothing can be written there: what is to be in it takes time to make.
    """
    elsewhere = f"set {key}= to another place"
    try:
        path = Path(given).expanduser()
        with writing(path, elsewhere):
            if not path.name or given.endswith("/") or path.is_dir():
                raise UserError("bad_value", f"{key}={given} is a folder.", "Name a file in it.")
            path.parent.mkdir(parents=True, exist_ok=True)
            with _temporary(path) as file:
                Path(file.name).unlink()
    except (RuntimeError, ValueError) as error:  # `~name` of nobody, a NUL
        raise UserError("bad_value", f"{key}={given!r} is no path: {error}.", f"{elsewhere.capitalize()}.") from error
    return path


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_file(path: Path, hint: str = "") -> BufferedReader:
    """A regular file to read. Never waits: a FIFO, a device or a folder in its place is a DamagedFileError.

    FileNotFoundError where there is none; a UserError `cannot_read` where the system refuses.
    """
    try:
        return _open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as error:
        raise UserError("cannot_read", f"cannot read {path}: {error.strerror or error}.", hint) from error
    except DamagedFileError as error:
        raise DamagedFileError(path, error.why, hint) from None


def _open_regular(path: Path, flags: int = 0) -> BufferedReader:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise DamagedFileError(path, "it is a directory" if stat.S_ISDIR(mode) else "it is no regular file")
    return open(descriptor, "rb")


def read_file(path: Path, at_most: int, hint: str = "") -> bytes:
    """The bytes of a regular file; DamagedFileError where they are more than `at_most`, otherwise as `open_file`."""
    with open_file(path, hint) as file:
        try:
            data = file.read(at_most + 1)
        except OSError as error:
            raise UserError("cannot_read", f"cannot read {path}: {error.strerror or error}.", hint) from error
    if len(data) > at_most:
        raise DamagedFileError(path, f"it has more than {at_most:,} bytes", hint)
    return data


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes in hex; errors as `open_file`."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
