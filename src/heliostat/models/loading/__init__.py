"""Loading of models: the Hugging Face hub, local folders, and the models that need no network."""
