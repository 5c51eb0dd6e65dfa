"""On which processors a model can be run from here, and how."""
