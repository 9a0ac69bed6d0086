"""SHA-512 crypt against its specification, and against the C library."""

from __future__ import annotations

import ctypes
import ctypes.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.guest.passwords import hash_password, make_password


@pytest.mark.parametrize(
    ("password", "salt", "rounds", "digest"),
    [  # Of the test vectors in Drepper's specification, those that name their rounds.
        (
            "Hello world!", "saltstringsaltstring", 10000,
            "$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.",
        ),
        (
            "This is just a test", "toolongsaltstring", 5000,
            "$6$rounds=5000$toolongsaltstrin$lQ8jolhgVRVhY4b5pZKaysCLi0QBxGoNeKQzQ3glMhwllF7oGDZxUhx1yxdYcz/e1JSbq3y6JMxxl8audkUEm0",
        ),
        (
            "we have a short salt string but not a short password", "short", 77777,
            "$6$rounds=77777$short$WuQyW2YR.hBNpjjRhpYD/ifIw05xdfeEyQoMxIXbkvr0gge1a1x3yRULJ5CCaUeOxFmtlcGZelFl5CxtgfiAc0",
        ),
    ],
)  # fmt: skip
def test_the_specifications_own_examples(password: str, salt: str, rounds: int, digest: str) -> None:
    assert hash_password(password, salt=salt, rounds=rounds) == digest


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=100))
def test_the_c_library_verifies_it(password: str) -> None:
    name = ctypes.util.find_library("crypt")
    if name is None:
        pytest.skip("this machine has no libcrypt")
    crypt = ctypes.CDLL(name).crypt
    crypt.restype = ctypes.c_char_p
    made = hash_password(password, rounds=1000)
    assert crypt(password.encode(), made.encode()) == made.encode()


def test_salts_and_passwords_are_new_each_time() -> None:
    assert hash_password("x", rounds=1000) != hash_password("x", rounds=1000)
    words = {make_password() for _ in range(50)}
    assert len(words) == 50
    assert {len(word) for word in words} == {23}
    assert not set("".join(words)) & set("lo01")
