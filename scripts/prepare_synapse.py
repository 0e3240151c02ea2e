"""`locctx convert synapse` with the same arguments; see docs/datasets.md.

python scripts/prepare_synapse.py SOURCE -d ID
"""

import sys

from nnunet_locctx.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", "synapse", *sys.argv[1:]]))
