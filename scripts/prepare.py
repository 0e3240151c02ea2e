"""`locctx convert` with the same arguments, for people who look for a script; see docs/how-to/datasets.md.

python scripts/prepare.py btcv SOURCE -d ID
"""

import sys

from nnunet_locctx.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
