"""Annotation files of the field's formats -> examples: one reader, and what is known of splits."""
