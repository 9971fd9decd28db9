"""The studio: a page on which a painting and a photo become a picture, and the HTTP service behind it."""
