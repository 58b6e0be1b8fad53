"""Which network addresses a request may go to: a name is resolved once, every address that it means is looked at, and these alone are used.

A server that asks a URL which somebody typed can be made to ask its own network instead (SSRF). So loopback and private addresses need the
owner's word, and what no model server has, such as a cloud's metadata service, is refused in any case.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from preftune.errors import ConfigError, PreftuneError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds keep the credentials of the machine, beside the link-local range: AWS over IPv6, Alibaba, Oracle.
METADATA = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192")))
NAT64 = ipaddress.ip_network("64:ff9b::/96")
NOT_FOUND = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME), socket.EAI_FAIL})


class Unresolved(PreftuneError):
    """A name has no address now. again: whether asking later may help."""

    def __init__(self, what: str, where: str, fix: str, *, again: bool) -> None:
        super().__init__(what, where, fix)
        self.again = again


def addresses_of(host: str, port: int, *, allow_private: bool, where: str) -> list[Address]:
    """Return the addresses that a host name or a literal address means, in the order in which to try them.

    allow_private: loopback and private addresses too. where: how errors name what is asked.
    Raises ConfigError where any of the addresses is not allowed (a name that means a public and a private one is an attack), and Unresolved
    where there is none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        again = isinstance(error, socket.gaierror) and error.errno not in NOT_FOUND
        raise Unresolved(f'the name "{host}" cannot be resolved', where, "Look at its URL and at your network.", again=again) from error
    addresses = list(dict.fromkeys(ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found))
    for address in addresses:
        if reason := refusal(address, allow_private=allow_private):
            raise ConfigError(f'"{host}" is {address}, {reason[0]}', where, reason[1])
    return addresses


def refusal(address: Address, *, allow_private: bool) -> tuple[str, str] | None:
    """Return (why, what to do) where an address may not be asked, or None where it may."""
    for meant in _meanings(address):
        if meant in METADATA or meant.is_link_local:
            return "where machines keep their credentials", "No model is served there. Give another URL."
        if meant.is_unspecified or meant.is_multicast or (meant.version == 4 and meant.is_reserved):
            return "which is no address of one server", "Give the server's own, such as 127.0.0.1."
        if not meant.is_global and not allow_private:
            return (
                "which is on this machine or in a private network",
                "If that is meant, write allow_private: true at this endpoint in preftune.yaml.",
            )
    return None


def is_private(address: Address) -> bool:
    """Return whether an address is on this machine or in a private network."""
    return any(not meant.is_global for meant in _meanings(address))


def _meanings(address: Address) -> Iterator[Address]:
    # An IPv6 address may carry the IPv4 address to which it really leads.
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            yield address.ipv4_mapped
        if address.sixtofour:
            yield address.sixtofour
        if address.teredo:
            yield from address.teredo
        if address in NAT64:
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
