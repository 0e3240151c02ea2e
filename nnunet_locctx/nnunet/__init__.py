"""The adapter: the only room of the house that knows nnU-Net."""
