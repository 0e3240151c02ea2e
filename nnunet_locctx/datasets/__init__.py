"""Converts public releases to nnU-Net's raw format, and finds cases whose voxel grid differs from the others."""
