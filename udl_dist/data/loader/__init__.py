"""From indexed WebDataset tars to batches of images in an exact order.

Knows no model, no loss, no torch and no Ray.
"""
