"""Listen on a network address: what the servers of the study and of the studio have in common."""

from __future__ import annotations

import ipaddress
import os
import re
import socket

from inst.errors import Argument, InstError, UsageError
from inst.texts import cut

_HOST = re.compile(r"[\w.:%-]{1,253}")
"""What can be a host name or an address: letters of any language (IDNA), and %eth0 after an IPv6 address."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: address to listen on; "0.0.0.0" means all addresses of this computer.
        port: port to listen on; 0 chooses a free port.

    Raises:
        UsageError: the port is out of range, or the host is no name and no address.
        InstError: the address and port cannot be listened on.
    """
    if not 0 <= port < 2**16:
        raise UsageError(f"The port {cut(str(port), 60)} cannot be used", "give a number from 0 to 65535")
    if not _HOST.fullmatch(host):  # an empty one would be all addresses
        raise UsageError(f"The host {cut(ascii(host), 60)} is no name and no address", 'give one, such as "127.0.0.1"')
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":  # on other systems, two servers could share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, UnicodeError) as error:  # the latter: a part of the name is longer than names can be
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InstError(
            f"The server cannot listen on {cut(host, 60)} port {port} ({reason})",
            "give another ",
            Argument("port"),
            " or ",
            Argument("host"),
        ) from None
    return listener


def page_address(host: str, listener: socket.socket) -> str:
    """Return the address of the page that a listening socket serves, with a slash at its end."""
    return f"http://{_reachable(host)}:{listener.getsockname()[1]}/"


def is_loopback(host: str) -> bool:
    """Whether only programs on this computer can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _reachable(host: str) -> str:
    """Return the host for an address that other computers can open: for all addresses, the one in the local network."""
    if host in ("0.0.0.0", "::"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # an address reserved for documentation; a UDP connect sends nothing
                return str(probe.getsockname()[0])
            except OSError:
                return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
