"""Logit lens, direct attribution to parts of the model, head detectors, and heads as factored matrices."""
