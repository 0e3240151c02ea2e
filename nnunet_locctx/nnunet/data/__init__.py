"""A dataset as nnU-Net keeps it: its scans, their paths, and the sources fitted on it."""
