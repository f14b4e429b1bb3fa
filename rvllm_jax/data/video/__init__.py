"""Video files in, RGB frames and their times out."""
