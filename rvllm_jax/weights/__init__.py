"""Published weights, in and out: names by rules.py, files by files.py, checks by merge.py."""
