"""udl-dist: unsupervised deep learning on images, at scale. Importing it does nothing."""

__version__ = "0.1.0"
