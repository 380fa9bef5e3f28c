"""`python -m reptk VERB ...` is the command `reptk VERB ...`."""

import sys

from reptk.cli import main

if __name__ == "__main__":
    sys.exit(main())
