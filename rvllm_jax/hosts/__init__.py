"""Several hosts as one run: who is there, what they tell each other, and how all end together."""
