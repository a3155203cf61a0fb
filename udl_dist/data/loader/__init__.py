"""What is seen: images packed into plain WebDataset tars, an index beside them, and batches in an
exact order.

Knows no model, no loss, no torch and no Ray.
"""
