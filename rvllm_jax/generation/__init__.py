"""From a model and questions to answers."""
