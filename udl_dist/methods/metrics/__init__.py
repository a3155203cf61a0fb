"""What validations of several methods compare images and latents by."""
