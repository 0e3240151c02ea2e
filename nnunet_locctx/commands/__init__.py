"""The commands of `locctx`, one module each: ``add`` makes the parser, ``run`` does the work.

Nothing slow (torch, nnU-Net, matplotlib) is imported before a command runs.
"""
