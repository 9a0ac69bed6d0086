"""The step that starts a VMM in its capsule: the one effect that a VM's life hangs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from cocoon.errors import CommandFailed, InvalidState, NotFound, Timeout
from cocoon.model.capsule import CapsuleSpec
from cocoon.model.vm import Protection, VMProcesses
from cocoon.plan.step import Step
from cocoon.units import printable
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.paths import VMPaths
    from cocoon.plan.world import World

CAPSULE_RUN_DIR = "/vm/run"
LAUNCH_TIMEOUT_S = 40.0  # From release to a running VMM: tens of milliseconds, seconds on a host that swaps.
END_TIMEOUT_S = 30.0
READY_POLL_S = 0.002
LAST_WORDS_BYTES = 1000
# A VMM that hangs up is on its way out, if it is one that dies.
DYING_S = 0.5


class Launched(Value):
    """The output of a launch: who runs now, and how well it is locked in. `said` is how many bytes the logs of the VMM
    and of the console had before."""

    processes: VMProcesses
    protections: tuple[Protection, ...]
    said: tuple[int, int] = (0, 0)


class LaunchVMM(Step):
    """Builds the capsule of `vm_id` and starts the VMM in it; the output is Launched.

    The launch is over when the VMM listens on `ready`, a socket's name in the capsule. With `foreground` the supervisor
    stays the caller's child and dies with it. A VMM that is `asked` makes its machine by requests that follow: by hand
    it runs in the background then.
    """

    step: ClassVar[str] = "launch"
    vm_id: str
    capsule: CapsuleSpec
    ready: str
    foreground: bool = False
    asked: bool = False

    def describe(self) -> tuple[str, ...]:
        """The bare VMM command with host paths for the capsule's names, and `$RUN` for the capsule's own directory.

        The capsule's protections are not described: by hand the VMM runs as whoever pastes the line.
        """
        place = (f"RUN={quote(self.capsule.run_dir)}", 'mkdir -p "$RUN"')
        command = _render_command(self.capsule)
        if not self.asked:
            return (*place, command)
        # Files, where the capsule has pipes that are read. No socket may be there already; the console is written only.
        files = "; ".join(f': > "$RUN"/{fifo.name}' for fifo in self.capsule.fifos)
        socket = f'"$RUN"{self.ready[len(CAPSULE_RUN_DIR) :]}'
        return (
            *place,
            *([files] if files else []),
            'rm -f "$RUN"/*.sock',
            f"{command} </dev/null &",
            f"until [ -S {socket} ]; do kill -0 $! || break; sleep 0.02; done",
        )

    def apply(self, world: World) -> Value | None:
        """Raises InvalidState when the VM still lives, HostFault or CommandFailed with the shim's or VMM's words."""
        from cocoon.host import capsule as capsules
        from cocoon.host.locks import try_lock

        lock = try_lock(world.paths.vm(self.vm_id).alive_lock)
        if lock is None:
            raise InvalidState(f"VM {self.vm_id} still has a VMM", hint="stop it first")
        said = _said(world.paths.vm(self.vm_id))
        with lock:
            pending = capsules.launch(self.capsule, alive_lock_fd=lock.fd, foreground=self.foreground)
            try:
                # The supervisor does nothing before this row is durable: should we die, its name is known.
                self._record(world, VMProcesses(supervisor=pending.supervisor))
                processes = pending.release(LAUNCH_TIMEOUT_S)
            except BaseException:
                pending.abandon()
                raise
        for warning in pending.warnings:
            world.report(warning)
        launched = Launched(processes=processes, protections=pending.protections, said=said)
        self._await_ready(world, launched)
        return launched

    def undo(self, world: World) -> None:
        """Ends the supervisor, and with it everything in the capsule."""
        import os

        from cocoon.host import process
        from cocoon.host.locks import lock

        paths = world.paths.vm(self.vm_id)
        if not os.path.isdir(paths.run_dir):
            return
        with world.store.read() as reader:
            vm = reader.vm(self.vm_id)
        if vm is not None and vm.processes is not None:
            process.terminate(vm.processes.supervisor, 0.0)
        # A supervisor that was not recorded leaves by itself, because its pipe has no writer any more.
        lock(paths.alive_lock, END_TIMEOUT_S, what=f"the capsule of VM {self.vm_id}").release()
        if vm is not None:
            self._record(world, None)

    def _await_ready(self, world: World, launched: Launched) -> None:
        """Returns when the VMM listens. Raises CommandFailed with the VMM's last words when it has ended instead."""
        import time

        from cocoon.host import capsule_reach, process

        processes = launched.processes
        deadline = time.monotonic() + LAUNCH_TIMEOUT_S
        while True:
            try:
                capsule_reach.connect_capsule_socket(
                    processes, self.ready, uid=self.capsule.uid, timeout_s=LAUNCH_TIMEOUT_S
                ).close()
                return
            except InvalidState:
                break
            except NotFound:
                if time.monotonic() > deadline:
                    raise Timeout(f"the VMM does not listen on {self.ready} after {LAUNCH_TIMEOUT_S:g} s") from None
            if processes.vmm is not None and process.wait_gone(processes.vmm, READY_POLL_S):
                break
        world.outputs[self.step] = launched
        raise_ended(world, self.vm_id, processes, during="")
        raise CommandFailed("the VMM's sockets have gone, and it has not ended")

    def _record(self, world: World, processes: VMProcesses | None) -> None:
        with world.store.write() as transaction:
            vm = transaction.vm(self.vm_id)
            if vm is None:
                raise InvalidState(f"VM {self.vm_id} has gone")
            transaction.put_vm(vm.replace(processes=processes))


def find_processes(world: World, vm_id: str) -> VMProcesses:
    """The VM's processes: just launched by this plan, or recorded. Raises InvalidState when it has none."""
    launched = world.outputs.get(LaunchVMM.step)
    if isinstance(launched, Launched):
        return launched.processes
    with world.store.read() as reader:
        vm = reader.vm(vm_id)
    if vm is None or vm.processes is None:
        raise InvalidState(f"VM {vm_id} is not running")
    return vm.processes


def raise_ended(world: World, vm_id: str, processes: VMProcesses, *, during: str) -> None:
    """Raises CommandFailed with the VMM's last words when it has ended, of this boot where this plan began it; returns
    when it lives. `during` is the request that it died of, or "" for its start."""
    from cocoon.host import process

    if processes.vmm is not None and not process.wait_gone(processes.vmm, DYING_S):
        return
    process.wait_gone(processes.supervisor, END_TIMEOUT_S)  # Until then the log may not be complete.
    launched = world.outputs.get(LaunchVMM.step)
    said = launched.said if isinstance(launched, Launched) else (0, 0)
    paths = world.paths.vm(vm_id)
    # What goes wrong before a VMM has its log may be told on its standard output.
    words = read_last_words(paths.vmm_log, said[0]) or ("" if during else read_last_words(paths.console_log, said[1]))
    when = f"at {during}" if during else "at once"
    raise CommandFailed(f"the VMM ended {when}: {words or 'it said nothing'}")


def _said(paths: VMPaths) -> tuple[int, int]:
    import os

    def size(path: str) -> int:
        try:
            return os.stat(path).st_size
        except OSError:
            return 0

    return size(paths.vmm_log), size(paths.console_log)


def read_last_words(log_path: str, start: int = 0) -> str:
    """The last lines of a log after byte `start`, on one line, harmless to a terminal; "" when there are none. (A log
    that is shorter now was begun anew.)"""
    try:
        with open(log_path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start if start <= size else 0, size - LAST_WORDS_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(" / ".join(lines[-3:]), LAST_WORDS_BYTES)[1:-1]


def quote(text: str) -> str:
    """`text` as one word of a POSIX shell."""
    if text and all((character.isalnum() and character.isascii()) or character in "@%+=:,./-_" for character in text):
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _render_command(capsule: CapsuleSpec) -> str:
    """The command over several lines: an option and its value share one."""
    words = [_render_word(argument, capsule) for argument in capsule.arguments]
    prefix = f"ip netns exec {quote(capsule.netns)} " if capsule.netns else ""
    lines = [prefix + words[0]]
    for argument, word in zip(capsule.arguments[1:], words[1:], strict=True):
        if argument.startswith("-") or len(lines) == 1:
            lines.append(word)
        else:
            lines[-1] += " " + word
    return " \\\n  ".join(lines)


def _render_word(argument: str, capsule: CapsuleSpec) -> str:
    """One argument, quoted, with the names of the capsule turned into those of the host."""
    for bind in sorted(capsule.binds, key=lambda bind: -len(bind.inner)):
        if bind.inner != bind.host and _names(argument, bind.inner):
            # In an option list a comma separates; doubled, it is a character (qemu(1), and Cloud Hypervisor alike).
            host = bind.host if argument == bind.inner else bind.host.replace(",", ",,")
            return quote(argument.replace(bind.inner, host))
    before, found, after = argument.partition(CAPSULE_RUN_DIR + "/")
    if not found:
        return quote(argument)
    return (quote(before) if before else "") + '"$RUN"/' + quote(after)


def _names(argument: str, inner: str) -> bool:
    """Whether `argument` names exactly `inner`: /vm/disk/1 is not in /vm/disk/10."""
    _, found, after = argument.partition(inner)
    return bool(found) and not (after and (after[0].isalnum() or after[0] in "/._-"))
