"""Ministral 3, whose queries have a factor by position, and the text part of Mistral models that see images."""
