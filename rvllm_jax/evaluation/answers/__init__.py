"""Files of answers, ours and others'."""
