"""Videos and annotations in, a prepared folder out."""
