"""The error tree. One kind per thing a caller can do about it.

    CocoonError                  exit status
    ├── InvalidSpec              2   the request itself is wrong: change it
    ├── NotFound                 3   no such VM, image, kernel
    │   └── Ambiguous            3   several match: be more specific
    ├── AlreadyExists            4   the name is taken
    ├── InvalidState             4   not possible in this state, or busy
    ├── Unsupported              5   this backend or host cannot do it
    ├── CommandFailed            1   a program that we ran failed
    ├── APIFailed                1   a VMM, registry or guest answered with an error
    │   └── ConnectionFailed     1   no connection, or it broke: another try may succeed
    ├── Timeout                  1   no answer within the deadline
    ├── Corrupt                  1   bytes are not what they claim to be
    ├── HostFault                1   the host refused: disk full, no memory, no permission
    └── Interrupted            130   the user (or a supervisor) asked us to stop

A message says what failed, with the value; `hint` says what to type next.
"""

from __future__ import annotations


class CocoonError(Exception):
    """Base of every error that the engine raises on purpose.

    `message` is one line without a full stop; `hint` is one line that says what to do, or "".
    """

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message, also when somebody on the way up has added to it."""
        return self.message


class InvalidSpec(CocoonError):
    """The request is wrong in itself, whatever the host or the store say."""

    exit_status = 2


class NotFound(CocoonError):
    """Nothing has this name, id or digest."""

    exit_status = 3


class Ambiguous(NotFound):
    """Several things match an abbreviated reference."""


class AlreadyExists(CocoonError):
    """The name is taken."""

    exit_status = 4


class InvalidState(CocoonError):
    """The thing exists, but not in a state that allows this; also: another command is at work on it."""

    exit_status = 4


class Unsupported(CocoonError):
    """This backend, image or host cannot do what was asked."""

    exit_status = 5


class CommandFailed(CocoonError):
    """A program that the engine ran exited with an error; the message carries the end of its stderr."""


class APIFailed(CocoonError):
    """A VMM, a registry or a guest answered with an error, or with what its protocol does not allow."""


class ConnectionFailed(APIFailed):
    """A connection could not be made, or broke off in the middle; the same request may well succeed later."""


class Timeout(CocoonError):
    """No answer within the deadline."""


class Corrupt(CocoonError):
    """Bytes are not what they claim to be: digest, size, format, database."""


class HostFault(CocoonError):
    """The host refused: disk full, out of memory, no permission, a missing kernel feature."""


class Interrupted(CocoonError):
    """SIGINT or SIGTERM arrived; what was begun has been undone."""

    exit_status = 130
