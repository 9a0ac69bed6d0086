"""Whether a program on this host listens where a port is to be published: guests would take its clients away."""

from __future__ import annotations

import errno
import socket

from cocoon.errors import HostFault, InvalidState
from cocoon.model.vm import PublishedPort


def check_port_free(port: PublishedPort) -> None:
    """Raises InvalidState when the port is in use here or the address is none of this host's, HostFault otherwise."""
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    where = f"{port.host_ip or '0.0.0.0'}:{port.host_port}/{port.protocol}"
    with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as probe:
        if kind == socket.SOCK_STREAM:
            # Connections that have ended do not count, somebody who listens does (socket(7)).
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host_ip, port.host_port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                hint = "choose another one; who it is: ss -lnp"
                raise InvalidState(f"port {where} is in use by a program on this host", hint=hint) from error
            if error.errno == errno.EADDRNOTAVAIL:
                hint = "this host's addresses: ip address"
                raise InvalidState(f"{port.host_ip} is no address of this host", hint=hint) from error
            raise HostFault(f"port {where}: {error.strerror}") from error
