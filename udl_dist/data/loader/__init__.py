"""From indexed WebDataset tars to batches of images in an exact order, without torch or Ray."""
