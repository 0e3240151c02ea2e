"""The adapter to nnU-Net: options, commands, data, prediction, training and planning."""
