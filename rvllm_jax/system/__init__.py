"""What is nobody's topic: files, processes, memory, errors."""
