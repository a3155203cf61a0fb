"""How good it is: figures and pictures of a method on held-out images."""
