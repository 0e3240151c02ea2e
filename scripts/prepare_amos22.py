"""`locctx convert amos22` with the same arguments; see docs/datasets.md.

python scripts/prepare_amos22.py SOURCE -d ID
"""

import sys

from nnunet_locctx.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "amos22", *sys.argv[1:]]))
