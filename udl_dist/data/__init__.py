"""Images from files to batches: formats, shards, packing, checks and the loader."""
