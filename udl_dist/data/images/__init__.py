"""Encoded images to pixels of the training shape and back: headers, decoders, crops. Knows no tar
and no order.
"""
