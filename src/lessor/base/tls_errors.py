# SPDX-License-Identifier: Apache-2.0
"""OpenSSL's errors in words, for logs and messages. No connection is made here."""

import re
import ssl


def reason_of(error: ssl.SSLError) -> str:
    """What OpenSSL has to say, without the names and line numbers around it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if error.reason:
        return error.reason.lower().replace("_", " ")
    return re.sub(r"^\[\w+\] |\s*\(_ssl\.c:\d+\)$", "", str(error.strerror or error))
