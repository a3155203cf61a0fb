"""Metrics and pictures of a method on held-out images."""
