"""What a step computes, and what chips can do."""
