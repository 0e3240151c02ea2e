"""`locctx convert kits23` with the same arguments; see docs/datasets.md.

python scripts/prepare_kits23.py SOURCE -d ID
"""

import sys

from nnunet_locctx.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "kits23", *sys.argv[1:]]))
