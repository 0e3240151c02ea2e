"""`python -m nnunet_locctx` is `locctx`, for environments whose scripts are not on the PATH."""

import sys

from nnunet_locctx.cli import main

if __name__ == "__main__":
    sys.exit(main())
