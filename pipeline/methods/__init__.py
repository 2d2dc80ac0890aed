"""Unlearning methods; one file an idea."""
