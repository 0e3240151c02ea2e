"""Public releases in nnU-Net's raw format, and the grids of a dataset that differ from the rest."""
