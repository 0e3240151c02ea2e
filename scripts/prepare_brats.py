"""`locctx convert brats` with the same arguments; see docs/datasets.md.

python scripts/prepare_brats.py SOURCE -d ID
"""

import sys

from nnunet_locctx.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "brats", *sys.argv[1:]]))
