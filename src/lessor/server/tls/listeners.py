# SPDX-License-Identifier: Apache-2.0
"""Makes the part that does TLS for the server's listeners, from the options, when the server starts."""

import dataclasses
import logging

from lessor.server.observe.shortages import Shortages
from lessor.server.options import Options
from lessor.server.tls import self_signed
from lessor.server.tls.context import CredentialFiles
from lessor.server.tls.secure import Handshakes

log = logging.getLogger("lessor")


def tls_for(options: Options, shortages: Shortages) -> Handshakes | None:
    """Reads the certificates, or makes one for --auto-tls. Returns None when no URL has TLS.

    Raises OptionError when a file cannot be used. When certificates are given and a URL has no TLS, logs etcd's
    warnings about that.
    """
    tls = options.tls
    given = bool(tls.cert_file or tls.key_file)
    every = (*options.listen_client_urls, *options.listen_metrics_urls)
    for listen in every:
        if not listen.tls and (given or tls.auto):
            text = "scheme is http or unix while key and cert files are present; ignoring key and cert files"
            log.warning(text, extra={"client-url": listen.url})
        if not listen.tls and tls.client_cert_auth:
            text = "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL"
            log.warning(text, extra={"client-url": listen.url})
    if not any(listen.tls for listen in every):
        return None
    if tls.auto and given:
        log.warning("ignoring client auto TLS since certs given")
    elif tls.auto:
        cert_file, key_file = self_signed.files(options)
        tls = dataclasses.replace(tls, cert_file=cert_file, key_file=key_file)
    files = CredentialFiles(tls)
    return Handshakes(files, tls.client_cert_allowed_hostnames, tls.client_cert_auth, shortages)
