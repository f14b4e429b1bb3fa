"""Videos and annotations in, batches out."""
