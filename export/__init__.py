"""From a Hugging Face model and its Medusa heads to a bundle."""
