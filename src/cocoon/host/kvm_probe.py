"""Does /dev/kvm really run guests? A program of its own: `python -I -S kvm_probe.py SECONDS`.

Some hosts have a /dev/kvm that opens, answers every ioctl and runs a few instructions, and is still useless: its ring 0
is emulated at about a microsecond per instruction, and every kernel dies in it after a minute. So the probe's guest
does what kernels do all the time: in 64-bit mode it moves a page table entry, reloads CR3, reads and writes through the
moved page (a thousand times), then adds and stores over half a megabyte (a million times), then asks CPUID. Measured:
13 to 15 s on such a host, 0.06 to 0.17 s with AMD's KVM inside an emulated machine; on a real one it runs at the
processor's own speed. A wrong sum, another exit than HLT, or no end before the deadline is a KVM that does not count.

The guest (assembled below; `tests/unit/test_kvm_probe.py` assembles this text again and compares):

    xor eax, eax
    mov r8d, 0x5000
    mov r9d, 0x400000
    xor ecx, ecx
moving:
    mov edx, ecx
    and edx, 1
    shl edx, 12
    add edx, 0x8003
    mov [r8], rdx
    mov rbx, cr3
    mov cr3, rbx
    add rax, [r9]
    add qword ptr [r9+8], 1
    inc rcx
    cmp rcx, rsi
    jb moving
    mov r10d, 0x100000
    xor ecx, ecx
adding:
    imul rdx, rcx, 0x1e3779b1
    and edx, 0x7fff8
    add [r10+rdx], rcx
    add rax, rcx
    inc rcx
    cmp rcx, rdi
    jb adding
    mov [0x7000], rax
    mov esi, 64
asking:
    xor eax, eax
    xor ecx, ecx
    cpuid
    dec esi
    jnz asking
    hlt

This file imports nothing of cocoon, since it runs alone, in a child that a hanging KVM_RUN may take along. It prints
one line: `ok MICROSECONDS`, or `fail WORDS`. Source: Documentation/virt/kvm/api.rst, <linux/kvm.h>.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import struct
import sys
import time

GUEST_CODE = bytes.fromhex(
    "31c041b80050000041b90000400031c989ca83e201c1e20c81c2038000004989100f20db0f22db490301498341080148"
    "ffc14839f172d941ba0000100031c94869d1b179371e81e2f8ff070049010c124801c848ffc14839f972e44889042500"
    "700000be4000000031c031c90fa2ffce75f6f4"
)
CODE, PML4, PDPT, PD, PT, RESULT, PAGE_A, PAGE_B = (0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x7000, 0x8000, 0x9000)
VALUE_A, VALUE_B = 0x0123456789, 0x0BADCAFE01  # Summed a thousand times they stay below 64 bits.
MEMORY_BYTES = 2 * 1024 * 1024
MOVES, ADDITIONS = 1_000, 1_000_000
PRESENT_WRITABLE, LARGE = 3, 0x80

KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
KVM_CREATE_VCPU, KVM_SET_TSS_ADDR, KVM_RUN = 0xAE41, 0xAE47, 0xAE80
KVM_SET_USER_MEMORY_REGION, KVM_SET_REGS = 0x4020AE46, 0x4090AE82
KVM_GET_SREGS, KVM_SET_SREGS = 0x8138AE83, 0x4138AE84
KVM_GET_SUPPORTED_CPUID, KVM_SET_CPUID2 = 0xC008AE05, 0x4008AE90
API_VERSION = 12
TSS_ADDRESS = 0x7FF00000  # Three pages that Intel processors want outside of the guest's memory.
EXIT_HLT = 5
EXIT_NAMES = {2: "I/O", 6: "MMIO", 8: "SHUTDOWN (triple fault)", 9: "FAIL_ENTRY", 17: "INTERNAL_ERROR"}
SREGS_BYTES, SEGMENT_BYTES, CPUID_ENTRIES, CPUID_ENTRY_BYTES = 312, 24, 256, 40
CR0_PG_WP_PE, CR4_PAE, EFER_LMA_LME = 0x80010001, 0x20, 0x500


class Unusable(Exception):
    """KVM is not usable; the words say why."""


def measure(limit_s: float) -> float:
    """Seconds that the guest took for its work; the alarm goes off after `limit_s`. Raises Unusable or OSError."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    if fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0) != API_VERSION:
        raise Unusable("its interface has another version than 12")
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    memory = mmap.mmap(-1, MEMORY_BYTES)
    _load(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, KVM_SET_TSS_ADDR, TSS_ADDRESS)
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, MEMORY_BYTES, address))
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    shared = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
    _set_up(kvm, vcpu)
    # From here on only: on a slow host the interpreter's start may take longer than any guest.
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    begin = time.perf_counter()
    fcntl.ioctl(vcpu, KVM_RUN, 0)
    elapsed = time.perf_counter() - begin
    signal.setitimer(signal.ITIMER_REAL, 0)
    (reason,) = struct.unpack_from("<I", shared, 8)
    if reason != EXIT_HLT:
        raise Unusable(f"a probe guest ended with exit {EXIT_NAMES.get(reason, reason)}")
    _verify(memory)
    return elapsed


def _load(memory: mmap.mmap) -> None:
    """Code, page tables, the two pages. The first 2 MiB are mapped to themselves, 0x400000 by the moving entry."""
    memory[CODE : CODE + len(GUEST_CODE)] = GUEST_CODE
    for place, entry in (
        (PML4, PDPT | PRESENT_WRITABLE),
        (PDPT, PD | PRESENT_WRITABLE),
        (PD, LARGE | PRESENT_WRITABLE),
        (PD + 2 * 8, PT | PRESENT_WRITABLE),
        (PAGE_A, VALUE_A),
        (PAGE_B, VALUE_B),
    ):
        struct.pack_into("<Q", memory, place, entry)


def _set_up(kvm: int, vcpu: int) -> None:
    """The processor in 64-bit mode at the guest's first instruction."""
    cpuid = bytearray(8 + CPUID_ENTRIES * CPUID_ENTRY_BYTES)
    struct.pack_into("<I", cpuid, 0, CPUID_ENTRIES)
    fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid)
    fcntl.ioctl(vcpu, KVM_SET_CPUID2, cpuid)
    sregs = bytearray(SREGS_BYTES)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
    # base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding
    code = struct.pack("<QIH10B", 0, 0xFFFFFFFF, 8, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0)
    data = struct.pack("<QIH10B", 0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    sregs[0 : 6 * SEGMENT_BYTES] = code + 5 * data
    control = 8 * SEGMENT_BYTES + 2 * 16
    struct.pack_into("<QQQQQQ", sregs, control, CR0_PG_WP_PE, 0, PML4, CR4_PAE, 0, EFER_LMA_LME)
    fcntl.ioctl(vcpu, KVM_SET_SREGS, sregs)
    # rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags
    registers = [0] * 18
    registers[4], registers[5], registers[16], registers[17] = MOVES, ADDITIONS, CODE, 2
    fcntl.ioctl(vcpu, KVM_SET_REGS, struct.pack("<18Q", *registers))


def _verify(memory: mmap.mmap) -> None:
    """The guest's sum and its two counters, against ours."""
    half = MOVES // 2
    expected = (half * (VALUE_A + VALUE_B) + ADDITIONS * (ADDITIONS - 1) // 2, half, half)
    found = tuple(struct.unpack_from("<Q", memory, place)[0] for place in (RESULT, PAGE_A + 8, PAGE_B + 8))
    if found != expected:
        raise Unusable("a probe guest computed a wrong sum")


def main() -> None:
    """Prints the one line. A guest that does not end is interrupted by the alarm, or killed by whoever started us."""
    limit_s = float(sys.argv[1])

    def give_up(*_: object) -> None:
        raise Unusable(f"a probe guest did not end its work of milliseconds within {limit_s:g} s")

    signal.signal(signal.SIGALRM, give_up)
    try:
        line = f"ok {measure(limit_s) * 1e6:.0f}"
    except Unusable as error:
        line = f"fail {error}"
    except OSError as error:
        line = f"fail {error.strerror}"
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
