"""`locctx convert acdc` with the same arguments; see docs/datasets.md.

python scripts/prepare_acdc.py SOURCE -d ID
"""

import sys

from nnunet_locctx.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "acdc", *sys.argv[1:]]))
