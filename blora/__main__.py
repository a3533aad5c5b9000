"""`python -m blora`: the `blora` command, where its folder is not on the PATH."""

import sys

from blora.cli import main

if __name__ == "__main__":
    sys.exit(main())
