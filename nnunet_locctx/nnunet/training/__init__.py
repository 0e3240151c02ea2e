"""Training: nnU-Net's trainers with the location of each patch, its augmentation and its losses."""
