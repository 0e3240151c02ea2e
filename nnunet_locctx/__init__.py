"""Location as input for nnU-Net v2.

nnU-Net trains on patches and forgets where each patch came from. This package gives the network the coordinates
back, as three channels behind the image channels, and leaves planning, preprocessing, training and prediction to
nnU-Net's own commands. Importing it loads neither torch nor nnU-Net: import the modules you need.
"""

__version__ = "0.1.0"
