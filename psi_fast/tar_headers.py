"""What extends a tar's headers, looked at before tarfile reads it."""

import re
import tarfile
from io import BufferedReader

_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
"""Headers whose data belong to the next one: its long name and the like."""
MAX_BYTES = 2**20
"""Of them; names and attributes of a file are shorter."""
_RECORD = re.compile(rb"([0-9]{1,7}) [^=\n]+=")
_MANY_DIGITS = re.compile(rb"[0-9]{200}")


def header_in(file: BufferedReader) -> type[tarfile.TarInfo]:
    """A TarInfo that looks at what extends a header in `file` before tarfile does."""

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
            member = super().frombuf(buf, encoding, errors)
            if member.type in _EXTENDED and member.size > MAX_BYTES:
                raise tarfile.ReadError(f"{member.size:,} bytes extend a header, and at most {MAX_BYTES:,} are read")
            if member.type in _PAX:
                start = file.tell()
                sound = _are_records(file.read(member.size))
                file.seek(start)
                if not sound:
                    raise tarfile.ReadError(f"damaged extended header at byte {start - tarfile.BLOCKSIZE}")
            return member

    return Header


def _are_records(held: bytes) -> bool:
    """Whether they are what a pax header holds: lines "LENGTH KEY=VALUE". Of others, and of values that are long numbers,
    tarfile makes sense in quadratic time (Python before 3.11.10)."""
    start = 0
    while start < len(held):
        record = _RECORD.match(held, start)
        end = start + int(record[1]) if record else 0
        if record is None or end <= record.end() or held[end - 1 : end] != b"\n":
            return False
        start = end
    return _MANY_DIGITS.search(held) is None
