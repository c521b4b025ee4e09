"""The model card of a finished run: ``README.md`` next to the saved weights, in the format of the Hugging Face hub."""
