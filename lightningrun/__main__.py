"""`python -m lightningrun`: the same as the `lightningrun` command."""

import sys

from lightningrun.cli import main

if __name__ == "__main__":
    sys.exit(main())
