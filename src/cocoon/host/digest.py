"""SHA-256 of little, without OpenSSL: loading that costs 2 ms, a quarter of the interpreter's start.

`hashlib` is for whole files, where OpenSSL is five times as fast. The interpreter's own implementation is `_sha2` since
3.12 and `_sha256` before; one that was built without it has OpenSSL's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256
    except ImportError:
        try:
            from _sha256 import sha256
        except ImportError:
            from hashlib import sha256

__all__ = ["sha256"]
