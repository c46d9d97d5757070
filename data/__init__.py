"""What is kept: the registry's tables, the storages with its blobs, layer indexes, and the import that fills them."""
