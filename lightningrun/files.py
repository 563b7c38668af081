"""Files that survive ``kill -9``: atomic writes, an append-only journal, verified output folders, a run lock.

Everything written here is either appended as one whole record with a checksum, or built beside its place and renamed.
Everything read back is verified; what does not verify is set aside as ``*.corrupt-N``, never trusted or deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightningrun.errors import DiskFull, Locked, UsageError

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NOT_OURS = {errno.EROFS, errno.EACCES, errno.EPERM}
_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} | _NOT_OURS
_CRC_PREFIX = '{"crc":"'
MANIFEST = "manifest.json"
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces. Raises TypeError for what JSON cannot hold."""
    return _CANONICAL.encode(value)


def digest(value: Any) -> str:
    """Hex sha256 of ``canonical_json(value)`` (64 characters)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    sha = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            sha.update(block)
    return sha.hexdigest()


def safe_name(name: str, what: str) -> str:
    """``name`` unchanged if it can be a file name of ours; raises UsageError otherwise."""
    if not _SAFE_NAME.fullmatch(name):
        raise UsageError(f"{what} {name!r} cannot be a file name", hint="use letters, digits, '.', '_' and '-'")
    return name


def inside(folder: Path, name: str) -> Path:
    """``folder/name``, refused with UsageError if it leads out of ``folder`` (``..``, absolute, symlink)."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UsageError(f"{name!r} leads out of {folder}")
    return path


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn ENOSPC and its kin into ``DiskFull`` (exit 74) with the path in it."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRNOS:
            hint = "free space, then `lightningrun resume`"
            if error.errno in _NOT_OURS:
                hint = "choose another place with --runs-dir"
            raise DiskFull(f"cannot write: {error.strerror}", where=str(path), hint=hint) from error
        raise


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the new one, whole, after any kill."""
    with disk_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def set_aside(path: Path) -> Path:
    """Rename ``path`` to the first free ``<name>.corrupt-N`` beside it and return that."""
    return set_aside_as(path, path)


class Journal:
    """An append-only file of JSON records, one a line, each with a CRC-32 of its text as first field.

    One ``write(2)`` a record, so that a killed writer leaves at most one torn line, at the end. Opening for append
    cuts a torn end off. A damaged record in the middle means damage from outside: the whole file is copied aside as
    ``*.corrupt-N`` (see ``damaged``) and the records before it are kept, so that offsets stay valid.

    One writer at a time (the run lock sees to that); any number of readers.
    """

    def __init__(self, path: Path, mask: Callable[[str], str] | None = None) -> None:
        """Open for append. ``mask`` rewrites each record's JSON text before it is written (secrets)."""
        self.path = path
        self._mask = mask
        self.damaged: Path | None = None
        with disk_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._end = self._mend()

    def _mend(self) -> int:
        good = 0
        for start, line, _ in _lines(self.path):
            if _parse(line) is None:
                break
            good = start + len(line)
        size = os.fstat(self._fd).st_size
        if good < size:
            if _has_record_after(self.path, good):
                copy = self.path.with_name(self.path.name + ".aside")
                shutil.copyfile(self.path, copy)
                self.damaged = set_aside_as(copy, self.path)
            os.ftruncate(self._fd, good)
        return good

    def append(self, record: dict[str, Any]) -> int:
        """Append one record and return its byte offset. Raises ``DiskFull``; then nothing was appended."""
        body = _encode(record)
        if self._mask is not None:
            body = self._mask(body)
        data = f'{_CRC_PREFIX}{_crc(body)}"{"," if len(body) > 2 else ""}{body[1:]}\n'.encode(
            "utf-8", "backslashreplace"
        )
        offset = self._end
        with disk_errors(self.path):
            try:
                written = os.write(self._fd, data)
                if written != len(data):
                    os.ftruncate(self._fd, offset)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, offset)
                raise
        self._end += len(data)
        return offset

    def read(self, offset: int) -> dict[str, Any]:
        """The record at a byte offset that ``append`` returned. Raises ValueError if none verifies there."""
        return read_record(self._fd, offset)

    def sync(self) -> None:
        """Force what was appended to the disk itself (power loss; ``kill -9`` needs no sync)."""
        with disk_errors(self.path):
            os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_journal(path: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(offset, record)`` for each whole record from byte ``start`` on; stops before a torn or damaged one."""
    for offset, line, _ in _lines(path, start):
        record = _parse(line)
        if record is None:
            return
        yield offset, record


def read_record(fd: int, offset: int) -> dict[str, Any]:
    """The record at ``offset`` of an open journal file. Raises ValueError if none verifies there."""
    chunks: list[bytes] = []
    position = offset
    while True:
        chunk = os.pread(fd, 1 << 16, position)
        if not chunk:
            break
        end = chunk.find(b"\n")
        if end >= 0:
            chunks.append(chunk[: end + 1])
            break
        chunks.append(chunk)
        position += len(chunk)
    record = _parse(b"".join(chunks))
    if record is None:
        raise ValueError(f"no whole record at byte {offset}")
    return record


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=str).encode


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'backslashreplace')):08x}"


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n") or not line.startswith(_CRC_PREFIX.encode()):
        return None
    head = len(_CRC_PREFIX)
    crc, rest = line[head : head + 8], line[head + 9 : -1]
    body = b"{" + (rest[1:] if rest.startswith(b",") else rest)
    if b"%08x" % zlib.crc32(body) != crc:
        return None
    try:
        record = json.loads(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _lines(path: Path, start: int = 0) -> Iterator[tuple[int, bytes, bool]]:
    offset = start
    with open(path, "rb") as stream:
        stream.seek(start)
        for line in stream:
            yield offset, line, line.endswith(b"\n")
            offset += len(line)


def _has_record_after(path: Path, offset: int) -> bool:
    lines = (line for _, line, _ in _lines(path, offset))
    return any(_parse(line) is not None for line in lines)


def set_aside_as(copy: Path, original: Path) -> Path:
    """Rename ``copy`` to the first free ``<original name>.corrupt-N`` and return that."""
    number = 1
    while (aside := original.with_name(f"{original.name}.corrupt-{number}")).exists():
        number += 1
    os.rename(copy, aside)
    return aside


def commit_folder(built: Path, final: Path, facts: dict[str, Any]) -> None:
    """Publish the folder ``built`` as ``final`` by one rename, with a manifest of every file's sha256 written last.

    ``facts`` is stored in the manifest. If ``final`` exists already and verifies, it stays and ``built`` is removed.
    """
    with disk_errors(final):
        names = sorted(str(p.relative_to(built)) for p in built.rglob("*") if p.is_file())
        files = {name: file_digest(built / name) for name in names if name != MANIFEST}
        write_atomic(built / MANIFEST, json.dumps({"files": files, **facts}, indent=1, sort_keys=True))
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            if verify_folder(final) is not None:
                shutil.rmtree(built)
                return
            set_aside(final)
        try:
            os.rename(built, final)
        except OSError:
            if verify_folder(final) is None:
                raise
            shutil.rmtree(built)  # another process committed the same content first
            return
        directory = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def verify_folder(folder: Path) -> dict[str, Any] | None:
    """The manifest of a committed folder if every file in it verifies, else None (missing, torn, changed)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        listed = manifest["files"]
        if all(file_digest(inside(folder, name)) == sha for name, sha in listed.items()):
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        pass
    return None


class RunLock:
    """An exclusive ``flock`` on a run folder, released by the kernel however its holder ends."""

    def __init__(self, folder: Path) -> None:
        path = folder / ".lock"
        with disk_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise Locked(
                f"another process{f' (pid {holder})' if holder else ''} is at work on this run",
                where=str(folder),
                hint="wait for it, or end it and `lightningrun resume`",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
