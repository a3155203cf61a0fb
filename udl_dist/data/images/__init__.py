"""Encoded images to pixels of the training shape, and back."""
