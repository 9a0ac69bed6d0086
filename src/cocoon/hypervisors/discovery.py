"""Which backends there are, and which one a VM gets.

A backend is a folder here with a `backend.py` that names its instance `BACKEND`; its name is the folder's with `-` for
`_`. Only the one asked for is imported.
"""

from __future__ import annotations

import os
from importlib import import_module

from cocoon.errors import HostFault, InvalidSpec, Unsupported
from cocoon.hypervisors.hypervisor import Hypervisor
from cocoon.model.host import Capability, HostFacts
from cocoon.model.image import Image
from cocoon.model.vm import PassedOver, RateLimits, VMSpec
from cocoon.units import printable, render_size

AUTO = "auto"
# Best first: what starts fastest and takes least memory, then what runs everywhere.
PREFERENCE = ("cloud-hypervisor", "firecracker", "qemu")

NO_WINDOWS = "leave --windows out"


def backend_names() -> tuple[str, ...]:
    """The names of the backends in this version, best first; one that PREFERENCE does not know comes last."""
    here = os.path.dirname(os.path.abspath(__file__))
    with os.scandir(here) as entries:
        folders = {entry.name.replace("_", "-") for entry in entries if os.path.isfile(f"{entry.path}/backend.py")}
    known = [name for name in PREFERENCE if name in folders]
    return (*known, *sorted(folders.difference(PREFERENCE)))


def load(name: str) -> Hypervisor:
    """The backend `name`. Raises InvalidSpec for a word that is none, Unsupported for one of a later version."""
    names = backend_names()
    if name in names:
        module = import_module(f"cocoon.hypervisors.{name.replace('-', '_')}.backend")
        backend: Hypervisor = module.BACKEND
        return backend
    choices = f"use one of: {', '.join((AUTO, *names))}"
    if name in PREFERENCE:
        raise Unsupported(f"{name} is not supported by this version of cocoon yet", hint=choices)
    raise InvalidSpec(f"there is no hypervisor {printable(name)}", hint=choices)


def choose(spec: VMSpec, image: Image, facts: HostFacts) -> tuple[Hypervisor, tuple[PassedOver, ...]]:
    """The backend that `spec.hypervisor` names, or with `auto` the best one that this host, image and specification
    allow, and those passed over for it with the reasons.

    Raises InvalidSpec for an unknown name, Unsupported with the backend's own words when the named one cannot, or with
    all reasons when none can, HostFault when the host has not enough memory for any.
    """
    check_host(spec, facts)
    if spec.hypervisor != AUTO:
        backend = load(spec.hypervisor)
        check_backend(backend, spec, image, facts=facts)
        return backend, ()
    passed: list[PassedOver] = []
    hints: list[str] = []
    for name in dict.fromkeys((*PREFERENCE, *backend_names())):
        try:
            backend = load(name)
            check_backend(backend, spec, image, facts=facts)
        except Unsupported as refusal:
            reason = refusal.message + _found(name, facts) if name not in backend_names() else refusal.message
            passed.append(PassedOver(hypervisor=name, reason=reason))
            hints += [refusal.hint] if name in backend_names() and refusal.hint else []
            continue
        return backend, tuple(passed)
    reasons = "; ".join(f"{item.hypervisor}: {item.reason}" for item in passed)
    raise Unsupported(f"no hypervisor on this host can run this VM ({reasons})", hint="; ".join(dict.fromkeys(hints)))


def check_host(spec: VMSpec, facts: HostFacts) -> None:
    """Raises HostFault when the host's free memory or huge pages are too few for `spec`, whatever the VMM."""
    if spec.hugepages:
        free = facts.free_hugepages * facts.hugepage_bytes
        if free < spec.memory_bytes:
            page = render_size(facts.hugepage_bytes)
            pages = -(-spec.memory_bytes // max(1, facts.hugepage_bytes))
            raise HostFault(
                f"--hugepages needs {pages} free huge pages of {page}, the host has {facts.free_hugepages}",
                hint=f"reserve more: sysctl vm.nr_hugepages={pages}, or leave --hugepages out",
            )
    elif spec.memory_bytes > facts.memory_available_bytes:
        raise HostFault(
            f"the VM wants {render_size(spec.memory_bytes)} of memory, "
            f"the host has {render_size(facts.memory_available_bytes)} available",
            hint="give it less with --memory, or stop another VM",
        )


def check_windows(spec: VMSpec) -> None:
    """Raises Unsupported when the guest is Windows and neither the backend that is named, nor with `auto` any, runs it;
    InvalidSpec for an unknown name. Asks nothing of the host."""
    if not spec.windows:
        return
    if spec.hypervisor != AUTO:
        _check_runs_windows(load(spec.hypervisor))
    elif not any(Capability.WINDOWS in load(name).capabilities for name in backend_names()):
        raise Unsupported("no hypervisor of this version of cocoon runs Windows guests", hint=NO_WINDOWS)


def _check_runs_windows(backend: Hypervisor) -> None:
    if Capability.WINDOWS in backend.capabilities:
        return
    firmware = Capability.FIRMWARE_BOOT in backend.capabilities
    reason = "this version of cocoon makes none for them" if firmware else "it has no firmware to boot one with"
    raise Unsupported(f"{backend.name} runs no Windows guests: {reason}", hint=NO_WINDOWS)


def check_named(spec: VMSpec, facts: HostFacts) -> None:
    """Raises what `choose` would for the backend that is named, whatever the image: for before that is fetched."""
    if spec.hypervisor != AUTO:
        backend = load(spec.hypervisor)
        _check_capabilities(backend, spec, facts)
        backend.check_host(facts)


def check_backend(backend: Hypervisor, spec: VMSpec, image: Image, *, facts: HostFacts) -> None:
    """What holds for every backend by its capabilities, then its own conditions. Raises Unsupported."""
    _check_capabilities(backend, spec, facts)
    if image.disk is not None and Capability.FIRMWARE_BOOT not in backend.capabilities:
        raise Unsupported(
            f"{backend.name} has no firmware to boot the cloud image {image.name} with", hint="use --hypervisor qemu"
        )
    backend.check(spec, image, facts)


def _check_capabilities(backend: Hypervisor, spec: VMSpec, facts: HostFacts) -> None:
    if spec.windows:
        _check_runs_windows(backend)
    if not facts.kvm.usable and Capability.SOFTWARE_EMULATION not in backend.capabilities:
        raise Unsupported(
            f"{backend.name} needs KVM, and {facts.kvm.reason}", hint="use --hypervisor qemu, which can do without"
        )
    if spec.hugepages and Capability.HUGEPAGES not in backend.capabilities:
        raise Unsupported(f"{backend.name} has no huge pages", hint="leave --hugepages out")
    if spec.queue_size and Capability.QUEUE_SIZE not in backend.capabilities:
        raise Unsupported(f"{backend.name} has queues of one size only", hint="leave --queue-size out")
    if spec.rates != RateLimits() and Capability.RATE_LIMITS not in backend.capabilities:
        raise Unsupported(
            f"{backend.name} does not limit what a guest has of its devices",
            hint="leave --disk-rate, --disk-iops and --nic-rate out, or use --hypervisor firecracker",
        )


def _found(name: str, facts: HostFacts) -> str:
    """Whether the VMM itself is there, for one that this version cannot use."""
    binary = facts.binaries.get(name)
    return f" (found {binary.path}, version {binary.version})" if binary is not None and binary.path else ""
