"""Views: how an image is cut into crops."""
