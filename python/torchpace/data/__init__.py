"""What the models are fed with."""
