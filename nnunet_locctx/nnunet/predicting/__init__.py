"""Prediction: the location of a new scan, and what a model carries for it in its checkpoint."""
