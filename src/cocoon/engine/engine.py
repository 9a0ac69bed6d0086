"""The engine: a configuration, the store behind it, and the verbs.

    engine = Engine(config)
    vm = engine.run_vm(spec)
    engine.stop_vm(vm.id)

Opening is cheap and happens at the first use. Every verb first finishes or undoes what dead commands left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cocoon.config import Config
from cocoon.errors import HostFault
from cocoon.paths import Paths
from cocoon.units import printable

if TYPE_CHECKING:
    from cocoon.engine.gc import Collection
    from cocoon.model.image import Image
    from cocoon.model.vm import VMRecord, VMSpec
    from cocoon.plan.world import World

Report = Callable[[str], None]


def _silent(text: str) -> None:
    """The report of somebody who does not want to know."""


class Engine:
    """All verbs over one root directory. Not for several threads at once; make one Engine per thread."""

    def __init__(self, config: Config, report: Report = _silent) -> None:
        self.config = config
        self.paths: Paths = config.paths()
        self._report = report
        self._world: World | None = None

    def world(self) -> World:
        """The open store with its surroundings, after recovery of what dead commands left.

        Raises Corrupt, Unsupported (a store of a newer version) or HostFault.
        """
        if self._world is None:
            world = self._open(create=True)
            self._sweep(world)
            self._world = world
        return self._world

    def _open(self, *, create: bool) -> World:
        from cocoon.plan.recover import recover
        from cocoon.plan.world import World
        from cocoon.store.store import Store

        world = World(store=Store.open(self.paths, create=create), config=self.config, report=self._report)
        for line in recover(world):
            self._report(line)
        return world

    def _sweep(self, world: World) -> None:
        """Removes what a command may leave that dies after its last commit, and VMs with `--rm` that have ended.

        That is the part of `gc` that cannot wait for somebody to ask for it. What cannot be removed is reported.
        """
        from cocoon.engine import image

        try:
            image.sweep(world)
        except HostFault as error:
            self._report(f"what a dead command left stays for now: {error.message}")
        with world.store.read() as reader:
            if not reader.vms_to_remove():
                return
        from cocoon.engine.lifecycle import sweep

        for name in sweep(world):
            self._report(f"removed {name}, which has ended and was run with --rm")

    def find_vm(self, ref: str) -> VMRecord:
        """The VM with this id, name or unique id prefix, in its true state. Raises NotFound, Ambiguous."""
        from cocoon.engine.reconcile import reconcile_vm

        world = self.world()
        with world.store.read() as reader:
            vm = reader.find_vm(ref)
        return reconcile_vm(world, vm)

    def vms(self) -> list[VMRecord]:
        """Every VM in its true state, oldest first; those with `--rm` that have ended are removed on the way."""
        from cocoon.engine.reconcile import reconcile

        return reconcile(self.world())

    def create_vm(self, spec: VMSpec) -> VMRecord:
        """A prepared VM; the image is pulled when it is absent. Raises what `engine.run.prepare` raises."""
        from cocoon.engine.run import create_vm

        return create_vm(self.world(), spec, self.find_or_pull_image(spec.image))

    def run_vm(self, spec: VMSpec) -> VMRecord:
        """A new VM, running; the image is pulled when it is absent."""
        from cocoon.engine.run import run_vm

        return run_vm(self.world(), spec, self.find_or_pull_image(spec.image))

    def start_vm(self, ref: str) -> VMRecord:
        """Starts a VM that does not run."""
        from cocoon.engine.lifecycle import start_vm

        return start_vm(self.world(), self.find_vm(ref))

    def stop_vm(self, ref: str, *, force: bool = False, timeout_s: float | None = None) -> VMRecord:
        """Stops a VM; without `timeout_s` the guest has the configured time."""
        from cocoon.engine.lifecycle import stop_vm

        timeout_s = float(self.config.stop_timeout_s) if timeout_s is None else timeout_s
        return stop_vm(self.world(), self.find_vm(ref), force=force, timeout_s=timeout_s)

    def remove_vm(self, ref: str, *, force: bool = False) -> VMRecord:
        """Removes a VM; returns what it was."""
        from cocoon.engine.lifecycle import remove_vm

        vm = self.find_vm(ref)
        remove_vm(self.world(), vm, force=force)
        return vm

    def wait_vm(self, ref: str) -> VMRecord:
        """Waits until the VM's processes have ended, and returns what became of it; nothing polls."""
        from cocoon.engine.reconcile import reconcile_vm, wait_end

        world = self.world()
        vm = self.find_vm(ref)
        wait_end(vm)
        return reconcile_vm(world, vm)

    def wait_end(self, ref: str, *, timeout_s: float) -> bool:
        """Whether the VM's processes have ended within `timeout_s`."""
        from cocoon.host import process

        vm = self.find_vm(ref)
        return vm.processes is None or process.wait_gone(vm.processes.supervisor, timeout_s)

    def note_exit(self, vm_id: str, status: int) -> None:
        """What the guest's command ended with, as its session told; a VM that has gone is fine."""
        with self.world().store.write() as transaction:
            vm = transaction.vm(vm_id)
            if vm is not None:
                transaction.put_vm(vm.replace(exit_status=status))

    def kill_vm(self, ref: str, number: int) -> None:
        """Ends a running VM at once (SIGKILL), or sends its command any other signal."""
        from cocoon.engine.killing import kill_vm

        kill_vm(self.world(), self.find_vm(ref), number)

    def inspect_vm(self, ref: str) -> dict[str, object]:
        """Everything about a VM, in JSON's types."""
        from cocoon.engine.inspect import inspect_vm

        return inspect_vm(self.world(), self.find_vm(ref))

    def debug_vm(self, spec: VMSpec) -> list[str]:
        """The plan of `run` as shell lines; nothing is made."""
        from cocoon.engine.debug import debug_vm

        return debug_vm(self.world(), spec, self.find_or_pull_image(spec.image))

    def collect_garbage(self, *, dry_run: bool = False) -> Collection:
        """Removes what nothing needs any more, or with `dry_run` says what that is.

        Makes no store, and refuses one that is not ours: raises NotFound, InvalidState, and what `world` raises.
        """
        from cocoon.engine.gc import collect_garbage

        return collect_garbage(self._open(create=False), dry_run=dry_run)

    def find_or_pull_image(self, ref: str) -> Image:
        """The image of this name, digest or id prefix; pulled from its registry when it is not here."""
        from cocoon.engine.image import pull_image, require_image

        world = self.world()
        found = require_image(world, ref)
        if found is None:
            self._report(f"image {printable(ref)} is not here: pulling it")
            found = pull_image(world, ref)
        return found
