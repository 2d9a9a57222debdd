"""Archives that are read to the end before anything of them is used."""

from __future__ import annotations

import bz2
import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line, printable

_MOST_BYTES = 1 << 30
_CHUNK = 1 << 20


def read_archive(path: Path, most_bytes: int = _MOST_BYTES) -> Iterator[tuple[str, bytes]]:
    """The regular files of a packed tar archive: their names and contents.

    The whole archive is unpacked in memory first, so that its checksums are compared, and has to
    end as an archive ends. Links and other things than files are left out.

    Raises:
      UserError: The archive is damaged, not packed (a plain tar file has no checksum of what it
        holds), or holds more than `most_bytes`.
    """
    try:
        data = _unpacked(path.read_bytes(), most_bytes)
        members = _members(data)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, tarfile.TarError) as error:
        raise UserError(
            f"{path}: cannot be unpacked ({first_line(error)}); it is damaged: get it again"
        ) from None
    return iter(members)


def read_packed(path: Path, most_bytes: int = _MOST_BYTES) -> bytes:
    """Returns the contents of a packed file, unpacked to its end, where its checksum is.

    Raises:
      UserError: The file is damaged, not packed, or holds more than `most_bytes`.
    """
    try:
        return _unpacked(path.read_bytes(), most_bytes)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be unpacked ({first_line(error)}); it is damaged: get it again"
        ) from None


def digest(data: bytes) -> str:
    """The SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def _unpacked(data: bytes, most_bytes: int) -> bytes:
    """All streams of the packed bytes; every checksum in them is compared."""
    parts, size = [], 0
    while data:
        unpacker = _unpacker(data)
        if unpacker is None:
            if parts and not data.strip(b"\0"):
                break  # xz pads to blocks of four bytes, tar to larger ones
            raise ValueError("not an xz, gzip or bzip2 file")
        rest = data
        while not unpacker.eof:
            part = unpacker.decompress(rest, _CHUNK)
            size += len(part)
            if size > most_bytes:
                raise ValueError(f"it holds more than {most_bytes:,} bytes")
            parts.append(part)
            rest = getattr(unpacker, "unconsumed_tail", b"")
            if not part and not rest and not unpacker.eof:
                raise EOFError("it ends too early")
        data = unpacker.unused_data
    return b"".join(parts)


def _unpacker(data: bytes) -> Any:
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_BYTES)
    if data.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31)  # with gzip's header and checksum
    if data.startswith(b"BZh"):
        return bz2.BZ2Decompressor()
    return None


def _members(data: bytes) -> list[tuple[str, bytes]]:
    found, end = [], 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            blocks = -(-member.size // tarfile.BLOCKSIZE) if member.isreg() else 0
            end = member.offset_data + blocks * tarfile.BLOCKSIZE
            if not member.isfile():
                continue
            if member.issparse():  # its declared size may be far above the bytes in the archive
                raise ValueError(f"{printable(member.name)} is a sparse file")
            source = archive.extractfile(member)
            content = source.read() if source else b""
            if len(content) != member.size:
                raise EOFError(f"it ends within {printable(member.name)}")
            found.append((member.name, content))
    if data[end:].strip(b"\0"):
        raise ValueError(f"it is damaged after {len(found)} files")
    return found
