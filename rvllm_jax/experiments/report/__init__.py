"""Reports of runs and of evaluations, as pictures, tables and pages."""
