"""TLS: beanstalkd behind a terminator such as stunnel or haproxy, with a CA of your own and a client certificate.

Run: python examples/tls.py beanstalks://queue.example:11400 ca.pem [client.pem]
"""

from __future__ import annotations

import ssl
import sys

import gstalk


def main(uri: str, ca_file: str | None = None, client_file: str | None = None) -> None:
    # Without a context: the system's CAs, the host's name checked, TLS 1.2 or newer.
    context = ssl.create_default_context(cafile=ca_file)
    if client_file is not None:
        context.load_cert_chain(client_file)

    with gstalk.dial(uri, tls_context=context) as conn:
        print("job", conn.put("tls", b"nobody on the way can read this"))
        conn.watch("tls")
        conn.reserve().delete()


if __name__ == "__main__":
    main(*sys.argv[1:])
