"""Exits 0 if the server in this container answers 200 on the given path.

The image has no curl. http.client rather than urllib.request: the latter would
send this local request through a proxy named in the environment.
"""

import http.client
import os
import sys


def main(path: str) -> int:
    """Asks for the path on this container's own port, which a flag of `blora serve` does not tell this program.

    Kubernetes sets the variable to tcp://ADDRESS:PORT beside a service of that name, which the server ignores too.
    """
    given = os.environ.get("BLORA_PORT", "")
    port = int(given) if given.isdecimal() else 8000
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        print(f"{path}: {exc}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    print(f"{path}: {status}")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
