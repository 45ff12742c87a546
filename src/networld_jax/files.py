"""Files that are whole or not there, and that notice a flipped bit.

Three kinds, each with its own way to tell: bulk data by a sha256 that stands elsewhere (`sha256`), JSON documents by a
checksum inside (`write_signed`, `read_signed`), and logs that grow line by line by a checksum per line that continues
the one before (`SealedLog`). Nothing here or elsewhere in the library unpickles: reading never executes code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SIGNATURE = "sha256"


class DamagedFileError(ValueError):
    """A file whose content is not what was written: truncated, altered, or something else altogether."""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Whole file or no file: temporary name, fsync, rename, fsync of the folder.

    Raises OSError naming `path` (full disk, no permission, ...); what stood there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise naming(error, path) from error
    sync_folder(path.parent)


def naming(error: OSError, path: Path) -> OSError:
    """The same error with a file name; writing to a full disk reports none."""
    return OSError(error.errno or 0, os.strerror(error.errno) if error.errno else str(error), str(path))


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------- signed documents


def _text(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode()


def write_signed(path: Path, document: Mapping[str, Any]) -> None:
    """Stores a JSON document with the sha256 of its text. Raises ValueError when it has an entry of that name."""
    if SIGNATURE in document:
        raise ValueError(f"{SIGNATURE!r} is the name of the checksum, the document for {path} must not use it")
    document = json.loads(_text(document))  # tuples become lists before the checksum is taken, not after
    write_atomically(path, _text(document | {SIGNATURE: hashlib.sha256(_text(document)).hexdigest()}))


def read_signed(path: Path) -> dict[str, Any]:
    """What `write_signed` stored. The file must be, byte for byte, what would be written for its content.

    Raises FileNotFoundError, or DamagedFileError naming the file.
    """
    content = path.read_bytes()
    try:
        signed = json.loads(content)
        document = {name: value for name, value in signed.items() if name != SIGNATURE}
        claimed = signed[SIGNATURE]
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is cut, altered or no signed document of this version") from error
    if content != _text(signed) or claimed != hashlib.sha256(_text(document)).hexdigest():
        raise DamagedFileError(f"{path} does not match its checksum (altered)")
    return document


# ---------------------------------------------------------------------------------------------------- sealed logs

_SEALED = re.compile(r'(\{.*), "crc32": "([0-9a-f]{8})"\}', re.DOTALL)


class SealedLog:
    """JSON objects, one per line, each sealed with a CRC-32 that continues the line before.

    A flipped bit, a cut line, lines removed, repeated or swapped all break the chain at that line. Lines missing at the
    end cannot be told from a log that has not got there yet: whoever reads knows how far it must reach.
    """

    def __init__(self, path: Path, keep_fn: Callable[[dict[str, Any]], bool] = lambda row: True):
        """Opens the log for appending. Rows up to the first that is damaged or that `keep_fn` rejects are kept; when
        that drops something the file is rewritten."""
        self.path = Path(path)
        rows, _ = read_sealed(self.path)
        keep = next((i for i, row in enumerate(rows) if not keep_fn(row)), len(rows))
        self.rows = rows[:keep]
        text, self._crc = "", 0
        for row in self.rows:
            line, self._crc = _seal(row, self._crc)
            text += line
        if not self.path.exists() or self.path.read_bytes() != text.encode():
            write_atomically(self.path, text.encode())

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row, durable when this returns. Raises OSError naming the file."""
        line, crc = _seal(row, self._crc)
        try:
            with open(self.path, "a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise naming(error, self.path) from error
        self._crc = crc


def _seal(row: Mapping[str, Any], crc: int) -> tuple[str, int]:
    text = json.dumps(row)
    crc = zlib.crc32(text.encode(), crc)
    return f'{text[:-1]}, "crc32": "{crc:08x}"}}\n', crc


def read_sealed(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """(intact rows from the start of a SealedLog, what is wrong after them or None). No file is no rows."""
    if not path.exists():
        return [], None
    rows: list[dict[str, Any]] = []
    crc = 0
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        row, crc = _unseal(line, crc)
        if row is None:
            return rows, f"line {number} of {path} does not match its checksum (altered or cut)"
        rows.append(row)
    return rows, f"the last line of {path} is cut" if lines[-1] else None


def _unseal(line: bytes, crc: int) -> tuple[dict[str, Any] | None, int]:
    try:
        match = _SEALED.fullmatch(line.decode())
        if match is None:
            return None, crc
        text = match[1] + "}"
        crc = zlib.crc32(text.encode(), crc)
        return (json.loads(text), crc) if f"{crc:08x}" == match[2] else (None, crc)
    except ValueError:
        return None, crc
