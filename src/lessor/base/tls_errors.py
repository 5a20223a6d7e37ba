# SPDX-License-Identifier: Apache-2.0
"""OpenSSL's errors in words, for logs and messages."""

import re
import sys


def is_of_tls(error: BaseException) -> bool:
    """Whether it is an ssl.SSLError. Does not import ssl: without it there is none."""
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(error, ssl.SSLError)


def reason_of(error: OSError) -> str:
    """OpenSSL's reason in an ssl.SSLError, without the names and line numbers around it."""
    verify_message = getattr(error, "verify_message", None)
    if verify_message:
        return f"certificate verify failed: {verify_message}"
    reason: str | None = getattr(error, "reason", None)
    if reason:
        return reason.lower().replace("_", " ")
    return re.sub(r"^\[\w+\] |\s*\(_ssl\.c:\d+\)$", "", str(error.strerror or error))
