"""Figures: paired errors, distances between error distributions, membership."""
