"""EXAONE 4: norms behind sublayers alone; where layers slide, those between them rotate nothing."""
