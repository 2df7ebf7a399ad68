"""OLMo 2 and OLMo 3: norms behind sublayers alone, all heads normed as one vector; the latter with windows."""
