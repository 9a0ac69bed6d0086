"""TAPs: interfaces whose cable ends in a VMM; made by ioctl in the calling thread's network namespace.

Sources: Linux Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import fcntl
import os
import struct

from cocoon.errors import HostFault
from cocoon.host.netlink import IFNAMSIZ

TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
TUNSETGROUP = 0x400454CE
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_MULTI_QUEUE = 0x0100


def make_tap(name: str, *, uid: int, queues: int = 1) -> None:
    """A persistent TAP that only `uid` (and root) may open, without packet information, with virtio headers.

    With more than one of `queues` it can be opened as often, once for each; otherwise once, and only by who asks for no
    queues of their own: the kernel refuses any other flags than those that it was made with. One that exists is opened
    with the same flags and kept. Raises HostFault, also when its flags differ.
    """
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if queues > 1 else 0)
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostFault(f"/dev/net/tun: {error.strerror}", hint="load the kernel module: modprobe tun") from error
    try:
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", _encoded(name), flags))
        # The kernel reads these arguments as int; a uid above 2**31 would be a negative one.
        fcntl.ioctl(tun, TUNSETOWNER, uid)
        fcntl.ioctl(tun, TUNSETGROUP, uid)
        fcntl.ioctl(tun, TUNSETPERSIST, 1)
    except OSError as error:
        raise HostFault(f"TAP {name}: {error.strerror}") from error
    finally:
        os.close(tun)


def _encoded(name: str) -> bytes:
    encoded = name.encode("ascii")
    if not 0 < len(encoded) < IFNAMSIZ:
        raise HostFault(f"interface name {name!r} has not 1 to {IFNAMSIZ - 1} characters")
    return encoded
