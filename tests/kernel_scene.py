"""Kernel verbs in a process of their own, for tests that kill it.

python kernel_scene.py BASE add NAME DEB | rm NAME | list
"""

from __future__ import annotations

import sys

from cocoon.config import Config
from cocoon.engine.kernel import add_kernel, list_kernels, remove_kernel
from cocoon.guest.kernels import KernelSource
from cocoon.plan.recover import recover
from cocoon.plan.world import World
from cocoon.store.store import Store
from store_examples import make_paths


def open_world(base: object) -> World:
    """The store below `base`, after recovery, as any command opens it."""
    world = World(store=Store.open(make_paths(base), create=True), config=Config())
    recover(world)
    return world


def main(base: str, verb: str, *words: str) -> None:
    world = open_world(base)
    if verb == "add":
        add_kernel(world, words[0], KernelSource(deb=words[1]))
    elif verb == "rm":
        remove_kernel(world, words[0])
    else:
        print(*(kernel.name for kernel in list_kernels(world)[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
