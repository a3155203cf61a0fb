"""How images become shards: sources, packing, and whatever `data.source` names made ready to be
read.

Knows no batch, no model and no Ray.
"""
