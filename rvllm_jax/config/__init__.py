"""A configuration: its schema, its check, and what earlier versions wrote."""
