"""How far a long transfer is: a bar on a terminal, plain lines elsewhere, both on stderr."""

from __future__ import annotations
