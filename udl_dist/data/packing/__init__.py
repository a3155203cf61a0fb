"""From a source of images to indexed shards: sources, packing, indexing."""
