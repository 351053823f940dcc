"""Text files that any editor or shell may have written."""

from __future__ import annotations

import codecs
from pathlib import Path

from mnv2det.errors import DataError


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with a byte order mark, as PowerShell writes it.

    Raises:
        DataError: The file cannot be read, or is in another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror})") from None
    encoding = "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8"
    try:
        text = data.decode("utf-16" if encoding == "UTF-16" else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in {encoding} (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path}: NUL bytes in it, as in UTF-16 without a byte order mark; save it as UTF-8")
    return text
