# SPDX-License-Identifier: Apache-2.0
"""--discovery-srv: the servers that a domain names in its SRV records, by etcd's rules.

`_etcd-client-ssl._tcp.DOMAIN` names those that speak TLS, `_etcd-client._tcp.DOMAIN` the others; with a service name of
NAME it is `_etcd-client-ssl-NAME._tcp.DOMAIN` and so on. Either may be missing. Servers that speak TLS come first. The
order within each of the two is that of RFC 2782: by priority, and at random by weight.

The resolver is dnspython's, which only this module needs: the extra `srv`.
"""

from typing import TYPE_CHECKING, cast

from lessor.cli.failure import ERROR, Failure
from lessor.cli.terminal import complain

if TYPE_CHECKING:
    from dns.rdtypes.IN.SRV import SRV

NEEDS = "--discovery-srv needs the library dnspython: pip install 'lessor[srv]'"


def endpoints_of(domain: str, service_name: str = "", *, insecure: bool = True, timeout_s: float = 2.0) -> list[str]:
    """The endpoints, https:// and http://; without `insecure` only the former, and stderr names those left out.

    `timeout_s`: for each of the two look-ups. Failure when both fail, when there is no endpoint, and without the
    library.
    """
    found: list[str] = []
    wrong: list[str] = []
    for scheme, service in (("https", "etcd-client-ssl"), ("http", "etcd-client")):
        name = f"_{service}{f'-{service_name}' if service_name else ''}._tcp.{domain}"
        try:
            for record in _records(name, timeout_s):
                endpoint = f"{scheme}://{record.target.to_text(omit_final_dot=True)}:{record.port}"
                if scheme == "http" and not insecure:
                    complain(f'ignoring discovered insecure endpoint "{endpoint}"')
                else:
                    found.append(endpoint)
        except LookupError as error:
            wrong.append(str(error))
    if len(wrong) == 2:
        raise Failure(ERROR, f"dns lookup errors: {wrong[0]} and {wrong[1]}")
    if not found:
        secure = "" if insecure else " that speaks TLS, and --insecure-discovery is false"
        raise Failure(ERROR, f"the SRV records of {domain} name no server{secure}")
    return found


def _records(name: str, timeout_s: float) -> "list[SRV]":
    """In the order in which they are to be tried. LookupError when there are none."""
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        raise Failure(ERROR, NEEDS) from None
    try:
        answer = dns.resolver.resolve(name, "SRV", lifetime=timeout_s)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        raise LookupError(f"lookup {name}: no such host") from None
    except dns.exception.Timeout:
        raise LookupError(f"lookup {name}: no answer within {timeout_s:g} s") from None
    except dns.exception.DNSException as error:
        raise LookupError(f"lookup {name}: {error}") from None
    assert answer.rrset is not None
    # A single record that names the root says that the service is not there.
    records = cast("list[SRV]", answer.rrset.processing_order())
    return [record for record in records if record.target.labels != (b"",)]
