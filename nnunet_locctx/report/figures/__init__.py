"""The report's figures: each a function of the study that returns pictures with captions."""
