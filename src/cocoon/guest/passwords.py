"""Passwords as /etc/shadow keeps them: SHA-512 crypt, after Ulrich Drepper's "Unix crypt using SHA-256 and SHA-512".

Of the strong methods it is the one that every guest's C library verifies (musl and old glibc know no yescrypt), and
Python's own `crypt` module is gone from 3.13.
"""

from __future__ import annotations

import hashlib
import os

# A tenth of a second here; a login in an emulated guest still takes no more than a few.
ROUNDS = 50_000
SALT_LENGTH = 16
_ALPHABET = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# No letters that look like others: people type these from a screen.
_SPOKEN = "abcdefghijkmnpqrstuvwxyz23456789"
_GROUPS, _GROUP_LENGTH = 4, 5


def make_password() -> str:
    """A new random password of 100 bits, `abcde-fgh23-...`."""
    letters = [_SPOKEN[byte % len(_SPOKEN)] for byte in os.urandom(_GROUPS * _GROUP_LENGTH)]
    return "-".join("".join(letters[at : at + _GROUP_LENGTH]) for at in range(0, len(letters), _GROUP_LENGTH))


def hash_password(password: str, *, salt: str = "", rounds: int = ROUNDS) -> str:
    """`$6$rounds=...$salt$hash` of the password, with a random salt unless one is given (at most 16 characters)."""
    salt = salt[:SALT_LENGTH] or "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(SALT_LENGTH))
    digest = _stretch(password.encode(), salt.encode(), rounds)
    return f"$6$rounds={rounds}${salt}${_encode(digest)}"


def _stretch(key: bytes, salt: bytes, rounds: int) -> bytes:
    """Steps 1 to 21 of the specification."""
    other = hashlib.sha512(key + salt + key).digest()
    first = key + salt + _repeat(other, len(key))
    length = len(key)
    while length:
        first += other if length & 1 else key
        length >>= 1
    digest = hashlib.sha512(first).digest()
    keys = _repeat(hashlib.sha512(key * len(key)).digest(), len(key))
    salts = _repeat(hashlib.sha512(salt * (16 + digest[0])).digest(), len(salt))
    for number in range(rounds):
        round_text = keys if number & 1 else digest
        round_text += salts if number % 3 else b""
        round_text += keys if number % 7 else b""
        round_text += digest if number & 1 else keys
        digest = hashlib.sha512(round_text).digest()
    return digest


def _repeat(data: bytes, length: int) -> bytes:
    return (data * (length // len(data) + 1))[:length]


def _encode(digest: bytes) -> str:
    """Step 22: 64 bytes in an order of their own, six bits a character, lowest first."""
    text = ""
    for index in range(21):
        three = [digest[index], digest[index + 21], digest[index + 42]]
        turn = index % 3
        high, middle, low = three[turn:] + three[:turn]
        text += _six_bits(high << 16 | middle << 8 | low, 4)
    return text + _six_bits(digest[63], 2)


def _six_bits(number: int, count: int) -> str:
    return "".join(_ALPHABET[number >> (6 * position) & 63] for position in range(count))
