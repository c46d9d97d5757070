"""Values and pure functions on bytes: digests, documents, tar, layer indexes, merge plans. Knows no I/O of its own."""
