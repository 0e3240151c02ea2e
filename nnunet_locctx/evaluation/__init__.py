"""Measures of segmentations, postprocessing, and robustness against a wrong location."""
