"""From a photo or a prompt, and a style, to a picture."""
